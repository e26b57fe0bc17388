"""What is looked at while a stage trains, by what samples and scores: training does not import these."""
