"""Judgements about answers: by people who compare two of them on a page, and by a model at an endpoint."""
