"""A repository of the Hugging Face hub as a checkpoint: files whole in the hub's own cache, byte ranges in ours."""
