"""Datasets from files, folders, the hub and the pocket world, in the forms the trainers take."""
