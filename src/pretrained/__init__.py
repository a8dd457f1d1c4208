"""Attention of pretrained language models: Section 5 and Figure 7 of the paper, for the two 7B models and any other."""
