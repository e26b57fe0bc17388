"""Reading a training run: from a log of any tool to what the run is and what is wrong with it."""
