"""Branch training: supervised fine-tuning of one student on one corpus, loss on the completion only."""
