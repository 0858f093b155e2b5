"""A bundle's name on the Hugging Face hub <-> a bundle folder.

pull.py      hub:OWNER/NAME[@REVISION] -> verified folder of the cache
push.py      bundle folder -> commit on the hub
failures.py  errors of huggingface_hub -> one sentence

huggingface_hub is imported when a name on the hub is used, never for a folder. It reads HF_TOKEN, HF_ENDPOINT and
HF_HUB_OFFLINE.
"""
