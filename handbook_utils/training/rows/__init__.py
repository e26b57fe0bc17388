"""The rows of a training run: labelled, packed, prepared by the trainer, and put into batches."""
