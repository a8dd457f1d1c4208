"""Whether Hugging Face's hub can be asked: without a network its own clients try for a minute."""

HUB_SECONDS = 10  # until the hub has answered, or counts as out of reach


def hub_answers(name: str, kind: str = "model") -> bool:
    """Whether the hub can be asked for a `model` or `dataset`; if not, what was fetched before may do."""
    import huggingface_hub
    from huggingface_hub import constants, errors

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        huggingface_hub.HfApi().repo_info(name, repo_type=kind, timeout=HUB_SECONDS)
    except errors.HfHubHTTPError:
        return True  # it is there, and says what is wrong when asked for files
    except Exception:  # whatever a network can do
        return False
    return True
