"""What all tests share: the hub that the real clients are pointed to, which is one of our own (hub_server.py)."""

import os
import shutil
import signal
import tempfile

import pytest
from hub_server import Hub, free_port

# The clients read these when they are imported, so they are set before any test file is. Nobody listens at that port
# until a test asks for `server`; and nothing of whoever runs the tests is read: no token, no cache.
HOME, PORT = tempfile.mkdtemp(prefix="hub-"), free_port()
for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING_FACE_", "TRANSFORMERS_"))]:
    del os.environ[name]
os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{PORT}", "HF_HOME": HOME, "HF_HUB_DISABLE_TELEMETRY": "1"}
os.environ |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
# What a shell starts in the background hears no Ctrl-C, nor does what it starts; some tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure(config):
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def the_hub(tmp_path_factory):
    hub = Hub(tmp_path_factory.mktemp("hub"), PORT)
    yield hub
    hub.stop()


@pytest.fixture
def server(the_hub):
    """Our hub, running and obedient; server.directory is what it serves."""
    the_hub.reset()
    the_hub.start()
    yield the_hub
    the_hub.stop()


@pytest.fixture
def cold(server):
    """The same, where nothing has been downloaded yet."""
    import huggingface_hub

    from nanodlm import hub

    shutil.rmtree(HOME, ignore_errors=True)
    huggingface_hub.HfFileSystem.clear_instance_cache()
    hub.say.cache_clear()
    return server
