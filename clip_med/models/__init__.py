"""Image-text dual encoders on open_clip, timm and transformers towers."""
