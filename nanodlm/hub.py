"""Everything that is asked of the Hugging Face hub: models and data sets, by the hub's own clients.

Caches and downloads are the clients' own; HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are theirs. What is added:
a connection that breaks is tried again; where the hub does not answer, the copy in the cache is used, and a line says
so; and whatever goes wrong is one sentence, which names the repository, what is the matter and what to do.
"""

import functools
import os
import sys
import time
from pathlib import Path
from urllib.parse import quote

# Seconds to wait, one after the other, when the clients have given up on a connection. They go on in the middle of a
# file by themselves, unless the connection was reset. Files that were whole are not fetched again.
PAUSES = (5, 20, 60)


def snapshot(name, pickle=False):
    """The directory with the files of a model, `org/name` or `org/name@revision`, that we read."""
    import huggingface_hub

    repository, _, revision = name.partition("@")
    files = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", *(["*.bin"] if pickle else [])]
    folders = [f"*/{f}" for f in files if f != "*.jinja"]  # of these, only additional_chat_templates
    keys = dict(revision=revision or None, allow_patterns=files, ignore_patterns=folders)
    load = functools.partial(huggingface_hub.snapshot_download, repository, **keys)
    return Path(get("model", name, lambda cached: load(local_files_only=cached)))


def rows(name, config=None, split="train", streaming=False, first=0, files="", instead=""):
    """The rows of a data set, dicts, from number `first` on, or those of `files` in it, as in data/*.parquet; `instead`
    says what else one may do where they cannot be had."""
    import datasets

    repository, _, revision = name.partition("@")
    args, keys = (repository, config), {"revision": revision or None}
    if files:
        url = f"hf://datasets/{repository}@{quote(revision or 'main', safe='')}/{files}"
        args, keys = ("json" if files.endswith("jsonl") else "parquet",), {"data_files": url}
    load = functools.partial(datasets.load_dataset, *args, split=split, streaming=streaming, **keys)
    found = dataset(name, load, instead)
    try:
        yield from found.skip(first) if first else found
    except Exception as e:  # in the middle of a stream
        sys.exit(sentence(e, "data set", name, instead))


def data_files(name, files, instead=""):
    """Where these files of a data set lie in the cache, [Path], downloaded if need be."""
    import huggingface_hub

    repository, _, revision = name.partition("@")
    load = functools.partial(
        huggingface_hub.hf_hub_download, repository, repo_type="dataset", revision=revision or None
    )
    return get("data set", name, lambda cached: [Path(load(f, local_files_only=cached)) for f in files], instead)


def dataset(name, load, instead=""):
    """What load(), a call of datasets.load_dataset, gives of the data set `name`."""
    import datasets

    def fetch(cached):  # without this, datasets tries for 23 seconds before it looks into its cache
        config, before = datasets.config, datasets.config.HF_HUB_OFFLINE
        config.HF_HUB_OFFLINE = cached or before
        try:
            return load()
        finally:
            config.HF_HUB_OFFLINE = before

    return get("data set", name, fetch, instead)


def get(kind, name, fetch, instead=""):
    """fetch(cached), what the hub or, where the hub does not answer for the repository, the cache has of it."""
    import huggingface_hub

    repository, _, revision = name.partition("@")
    trouble, keys = None, dict(repo_type=kind.replace(" ", ""), timeout=huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT)
    try:  # the clients would take what is cached without a word, or hide why there is nothing
        huggingface_hub.HfApi().repo_info(repository, revision=revision or None, **keys)
    except Exception as e:
        trouble = e
    for pause in (*PAUSES, None):
        try:
            found = fetch(trouble is not None)
            break
        except Exception as e:
            if trouble or pause is None or not reason(e, kind, name)[2]:
                sys.exit(sentence(trouble or e, kind, name, instead, not trouble))
            print(f"{kind} {name}: the connection to the hub broke off; again in {pause} s", flush=True)
            time.sleep(pause)
    if trouble:
        say(f"{kind} {name}: {reason(trouble, kind, name)[0]}; the copy in the cache is used")
    return found


@functools.cache  # once: a run looks a checkpoint up several times
def say(line):
    if int(os.environ.get("RANK", 0)) == 0:
        print(line, flush=True)


def sentence(error, kind, name, instead="", begun=True):
    """What is the matter and what to do, of an exception; `begun`: raised by a hub that had answered before."""
    what, advice, _ = reason(error, kind, name, begun)
    return f"{kind} {name}: {what}; {advice}" + (f"; or {instead}" if instead else "")


def first_line(error):
    """An exception in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def reason(error, kind, name, begun=False):
    """(what is the matter, what to do, whether time may heal it), from an exception and those that it comes from."""
    import httpx
    from huggingface_hub import constants, errors

    said = first_line(error)
    found = [error]
    while error := error.__cause__ or error.__context__:
        found.append(error)
    status = next((e.response.status_code for e in found if getattr(e, "response", None) is not None), 0)
    unwell = status == 429 or status >= 500 or any(isinstance(e, httpx.TransportError | ConnectionError) for e in found)
    types = {type(e) for e in found}
    gated = errors.GatedRepoError in types or "gated dataset" in said  # datasets keeps the words only
    unknown = errors.RepositoryNotFoundError in types
    lacking = next((e.response.url.path for e in found if type(e) is errors.RemoteEntryNotFoundError), "")
    file = lacking.partition("/resolve/")[2].partition("/")[2]
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'data set' else ''}{name.partition('@')[0]}"
    login, uncached = "`hf auth login`, or HF_TOKEN", f"it is not in the cache ({constants.HF_HOME})"
    cases = [  # the first that holds
        (errors.OfflineModeIsEnabled in types, "HF_HUB_OFFLINE is set", f"{uncached}: unset it once, to download it"),
        (gated, "it is gated", f"accept its terms on {page} and log in ({login})"),
        (errors.RevisionNotFoundError in types, "it has no such revision", f"{page}/tree/main lists those it has"),
        (unknown and status == 401, "it is private, or does not exist", f"check the name, or log in ({login})"),
        (unknown, "it does not exist", f"check the name; what is private needs a token that may read it ({login})"),
        (file, f"it has no file {file}", f"{page}/tree/main lists those it has"),
        (status == 401, "the hub does not accept your token", f"log in again ({login})"),
        (status, f"the hub answers {status}", "try again later" if unwell else said),
        (unwell and begun, "the connection to the hub broke off", "the same command goes on: what is whole is kept"),
        (unwell, f"the hub ({constants.ENDPOINT}) cannot be reached", f"{uncached}: run this once with a network"),
        (True, "the hub did not give it", said),
    ]
    return next((what, advice, unwell) for holds, what, advice in cases if holds)
