"""What the Kafka client raises while a broker goes away, in one form."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from aiokafka.errors import KafkaError


@contextmanager
def client_faults() -> Iterator[None]:
    """Turn what escapes from inside the client library into KafkaError.

    While a connection dies the library lets errors of its own bookkeeping through, such as
    KeyError (aiokafka#1098), and cancels futures that a caller waits for: a CancelledError
    without anybody having cancelled the task. Neither may end a service.
    """
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise KafkaError("the client gave the request up") from error
    except (KafkaError, OSError, TimeoutError):
        raise
    except Exception as error:
        if not _is_of_the_client(error):
            raise
        raise KafkaError(f"{type(error).__name__} inside the client") from error


def _is_of_the_client(error: Exception) -> bool:
    trace = error.__traceback__
    module = ""
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        trace = trace.tb_next
    return module.partition(".")[0] == "aiokafka"
