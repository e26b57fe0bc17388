"""From prompts to answers: rendering, decoding, engines, and answers given up early."""
