"""The Hugging Face Hub: why something could not be downloaded from it, in words that say what to do."""

import errno
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def interruptible(download: Callable[[], T]) -> T:
    """The result of a download, in a thread that ends with the process: the client's own threads would be waited for
    after Ctrl-C. Raises what the download raises.
    """
    done: Future[T] = Future()

    def work() -> None:
        try:
            done.set_result(download())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return done.result()


def why(error: BaseException) -> str:
    """The cause of a failed download, without a full stop. The client raises many types of errors, often nested.

    Raises the error again if the disk is full or a file may not be written: that has nothing to do with the Hub.
    """
    from huggingface_hub import constants, errors  # late: only a download needs them

    chain = list(_chain(error))
    for each in chain:
        if isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise each
    meanings: list[tuple[type[BaseException], str]] = [
        (errors.GatedRepoError, "its owner wants you to accept terms: do so on its page, then run `hf auth login`"),
        (errors.RepositoryNotFoundError, "there is no such repository, or it is private: `hf auth login` gives access"),
        (errors.RevisionNotFoundError, "the repository has no such revision"),
        (errors.RemoteEntryNotFoundError, "the repository has no such file"),
        (errors.OfflineModeIsEnabled, "HF_HUB_OFFLINE is set, and the Hub's cache on this machine does not have it"),
    ]
    for kind, meaning in meanings:
        if any(isinstance(each, kind) for each in chain):
            return meaning
    status = next((each.response.status_code for each in chain if isinstance(each, errors.HfHubHTTPError)), None)
    if status is not None:
        return f"the Hub at {constants.ENDPOINT} answers with status {status}; try again later"
    if any(_is_of_network(each) for each in chain):
        return f"no connection to the Hub at {constants.ENDPOINT}"
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and the Hub's cache on this machine does not have it"
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those that it came from, the last first."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def _is_of_network(error: BaseException) -> bool:
    """Whether an error says that the network failed. The client's HTTP library has changed; its names have not."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, ConnectionError | TimeoutError) or bool(names & {"TransportError", "RequestException"})
