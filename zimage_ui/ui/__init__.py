"""The page: Gradio Blocks, our own elements, theme and translations. A view; it holds no state."""
