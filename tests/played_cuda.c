/* A played CUDA for tests/played_cuda.py: memory is the host's, kernels are counted and do nothing, all else succeeds.

   Functions that ONNX Runtime's CUDA provider needs and that are not here are written by played_cuda.py: they return 0.
   No header of CUDA is needed: the offsets of fields are those of CUDA 13.0's driver_types.h. */

#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

typedef struct { long kernels, products, captured; } Counts;
Counts played; /* kernels, products included; products; graphs that were captured */

static int fill(void **at, int value) { *at = calloc(1, 64); return value; }
static void put(void *at, size_t offset, int value) { memcpy((char *)at + offset, &value, sizeof value); }
static void put_size(void *at, size_t offset, size_t value) { memcpy((char *)at + offset, &value, sizeof value); }

/* Memory: the provider asks of an address whether it is the host's (1) or the device's (2). */
enum { HOST = 1, DEVICE = 2, MOST = 1 << 16 };
static struct { char *at; size_t size; int kind; } blocks[MOST];
static int n_blocks;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int give(void **at, size_t size, int kind) {
    if (posix_memalign(at, 256, size ? size : 256)) return 2;
    pthread_mutex_lock(&lock);
    int i = 0;
    while (i < n_blocks && blocks[i].at) i++;
    if (i == MOST) abort();
    if (i == n_blocks) n_blocks++;
    memset(*at, 0, size);
    blocks[i].at = *at, blocks[i].size = size, blocks[i].kind = kind;
    pthread_mutex_unlock(&lock);
    return 0;
}
static int take(void *at) {
    pthread_mutex_lock(&lock);
    for (int i = 0; at && i < n_blocks; i++)
        if (blocks[i].at == at) blocks[i].at = NULL;
    pthread_mutex_unlock(&lock);
    free(at);
    return 0;
}
static int kind_of(const char *at) {
    int kind = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < n_blocks && !kind; i++)
        if (blocks[i].at && at >= blocks[i].at && at < blocks[i].at + blocks[i].size) kind = blocks[i].kind;
    pthread_mutex_unlock(&lock);
    return kind;
}
int cudaMalloc(void **at, size_t size) { return give(at, size, DEVICE); }
int cudaMallocFromPoolAsync(void **at, size_t size) { return give(at, size, DEVICE); }
int cudaMallocHost(void **at, size_t size) { return give(at, size, HOST); }
int cudaHostAlloc(void **at, size_t size) { return give(at, size, HOST); }
int cudaFree(void *at) { return take(at); }
int cudaFreeAsync(void *at) { return take(at); }
int cudaFreeHost(void *at) { return take(at); }
int cudaMemcpy(void *to, const void *from, size_t n) { memmove(to, from, n); return 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t n) { memmove(to, from, n); return 0; }
int cudaMemcpy2DAsync(char *to, size_t step, const char *from, size_t from_step, size_t width, size_t height) {
    for (size_t i = 0; i < height; i++) memmove(to + i * step, from + i * from_step, width);
    return 0;
}
int cudaMemcpyFromSymbol(void *to, const void *symbol, size_t n) { memset(to, 0, n); return 0; }
int cudaMemset(void *at, int value, size_t n) { memset(at, value, n); return 0; }
int cudaMemsetAsync(void *at, int value, size_t n) { memset(at, value, n); return 0; }
int cudaMemGetInfo(size_t *unused, size_t *all) { *unused = 70ul << 30, *all = 80ul << 30; return 0; }
int cudaMemPoolGetAttribute(void *pool, int attribute, size_t *value) { *value = 0; return 0; }
int cudaPointerGetAttributes(void *found, void *at) {
    memset(found, 0, 88);
    put(found, 0, kind_of(at));
    memcpy((char *)found + 8, &at, sizeof at), memcpy((char *)found + 16, &at, sizeof at);
    return 0;
}

/* The device: one H100. */
int cudaGetDeviceCount(int *n) { *n = 1; return 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
int cudaGetDeviceProperties(void *found, int device) {
    static const int numbers[][2] = {{304, 65536}, {308, 32}, {320, 1024}, {324, 1024}, {328, 1024}, {332, 64},
        {336, 2147483647}, {340, 65535}, {344, 65535}, {360, 9}, {384, 132}, {596, 50 << 20}, {604, 2048}, {632, 65536},
        {688, 32}};
    memset(found, 0, 1008);
    strcpy(found, "Played H100");
    put_size(found, 288, 80ul << 30), put_size(found, 296, 49152), put_size(found, 624, 233472);
    put_size(found, 672, 232448);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) put(found, numbers[i][0], numbers[i][1]);
    return 0;
}
int cudaDeviceGetAttribute(int *value, int attribute) {
    static const int known[][2] = {{1, 1024}, {8, 49152}, {10, 32}, {16, 132}, {39, 2048}, {75, 9}, {76, 0},
        {81, 233472}, {97, 232448}};
    *value = 1;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i][0] == attribute) *value = known[i][1];
    return 0;
}
int cudaFuncGetAttributes(void *found) {
    memset(found, 0, 144);
    put(found, 24, 1024), put(found, 28, 32), put(found, 32, 90), put(found, 36, 90);
    return 0;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n) { *n = 1; return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return number ? 101 : 0; }
int cuDeviceGetName(char *name, int size) { strncpy(name, "Played H100", size); return 0; }
int cuDeviceGetAttribute(int *value, int attribute) { *value = attribute == 75 ? 9 : 0; return 0; }
int cuDeviceTotalMem_v2(size_t *size) { *size = 80ul << 30; return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuInit(unsigned flags) { return 0; }

/* Kernels, products and graphs. */
static int capturing;
static int kernel(void) { played.kernels++; return 0; }
static int product(void) { played.products++; return kernel(); }
int __cudaLaunchKernel(void) { return kernel(); }
int cudaLaunchKernel(void) { return kernel(); }
int cudaLaunchKernelExC(void) { return kernel(); }
int cudaLaunchCooperativeKernel(void) { return kernel(); }
int cublasSgeam(void) { return kernel(); }
int cublasDgeam(void) { return kernel(); }
int cublasScopy_v2(void) { return kernel(); }
int cublasSscal_v2(void) { return kernel(); }
int cublasLtMatrixTransform(void) { return kernel(); }
int cublasLtMatmul(void) { return product(); }
int cublasGemmEx(void) { return product(); }
int cublasSgemm_v2(void) { return product(); }
int cublasGemmStridedBatchedEx(void) { return product(); }
int cublasSgemmStridedBatched(void) { return product(); }
int cublasGemmBatchedEx(void) { return product(); }
int cublasSgemmBatched(void) { return product(); }
int cublasLtMatmulAlgoGetHeuristic(void *h, void *o, void *a, void *b, void *c, void *d, void *p, int n, void *r,
                                   int *got) {
    memset(r, 0, 120);
    *got = 1;
    return 0;
}
int cublasGetMathMode(void *handle, int *mode) { *mode = 0; return 0; }
int cudaStreamIsCapturing(void *stream, int *status) { *status = capturing; return 0; }
int cudaStreamBeginCapture(void) { capturing = 1; return 0; }
int cudaStreamEndCapture(void *stream, void **graph) { capturing = 0; played.captured++; return fill(graph, 0); }
int cudaGraphInstantiate(void **made) { return fill(made, 0); }

/* Handles, names and events. */
void **__cudaRegisterFatBinary(void) { return calloc(1, 64); }
int cudaStreamCreate(void **made) { return fill(made, 0); }
int cudaStreamCreateWithFlags(void **made) { return fill(made, 0); }
int cudaEventCreate(void **made) { return fill(made, 0); }
int cudaEventCreateWithFlags(void **made) { return fill(made, 0); }
int cudaMemPoolCreate(void **made) { return fill(made, 0); }
int cudaLibraryLoadData(void **made) { return fill(made, 0); }
int cudaLibraryGetKernel(void **made) { return fill(made, 0); }
int cublasCreate_v2(void **made) { return fill(made, 0); }
int cublasLtCreate(void **made) { return fill(made, 0); }
int cublasLtMatmulDescCreate(void **made) { return fill(made, 0); }
int cublasLtMatmulPreferenceCreate(void **made) { return fill(made, 0); }
int cublasLtMatrixLayoutCreate(void **made) { return fill(made, 0); }
int cublasLtMatrixTransformDescCreate(void **made) { return fill(made, 0); }
int curandCreateGenerator(void **made) { return fill(made, 0); }
int cudaGetDriverEntryPointByVersion(const char *name, void **found, unsigned v, unsigned long long f, int *status) {
    *found = NULL;
    if (status) *status = 1;
    return 0;
}
int cudaEventElapsedTime(float *ms) { *ms = 1; return 0; }
const char *cudaGetErrorString(void) { return "played"; }
const char *cudaGetErrorName(void) { return "played"; }
const char *cublasGetStatusName(void) { return "played"; }
const char *cublasGetStatusString(void) { return "played"; }
