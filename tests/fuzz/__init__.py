"""The API as strangers use it: generated requests, and generated histories against a model."""
