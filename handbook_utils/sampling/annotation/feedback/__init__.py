"""Feedback by a model at an endpoint: answers rated, compared and revised, within a bound on spending."""
