"""What stands behind train.py: batches, loss, optimiser, run folder, processes, error head."""
