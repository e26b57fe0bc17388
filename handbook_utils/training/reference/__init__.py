"""The reference of DPO and KTO: which model it is, and its log-probabilities kept on disk."""
