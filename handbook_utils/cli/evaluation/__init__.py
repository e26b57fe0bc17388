"""The commands that decide: win rates, how many prompts, how good a reward model is."""
