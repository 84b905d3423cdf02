"""Training on Ray Train: sample order as arithmetic, sharded checkpoints in the store, the loop every worker
runs, and the launch. What is trained on what is a `Job`; pretraining, fine-tuning and preference training
differ in nothing else. Nothing here is imported with the package: torch and Ray take seconds."""
