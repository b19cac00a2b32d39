"""The study on real images: variants of pre-training, compared by what they give after fine-tuning."""
