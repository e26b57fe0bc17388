"""Numbers beside answers: what a scorer is, the scorers, the stage `score` and anyone's rows."""
