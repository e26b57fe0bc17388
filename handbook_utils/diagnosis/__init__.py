"""Reading a training run: a log of any tool in, what it is and what is wrong with it out; pure rules, no model."""
