"""By whom samples and scores are made: shards, local workers, a Ray cluster."""
