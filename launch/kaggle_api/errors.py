"""Errors of the Kaggle client, one class per cause.

* ClientError (a LaunchError): the client or the service failed
  * CredentialsError: no credentials, or credentials that Kaggle does not accept
  * RefusedError: Kaggle refused, so the request had no effect
    * CapacityError: the account already runs as many sessions as it may
    * QuotaError: the GPU hours of the week are used up
    * EmptyKernelError: the kernel exists on Kaggle without any version
  * NoResponseError: no readable response, so the request may or may not have had its effect
  * UnexpectedResponseError: the response holds something this code does not know
  * SourcesDroppedError: the push happened, but without some of its inputs
"""

from launch.errors import LaunchError
from lib.runtime.inputs import COMPETITION

# Remedies that several messages share.
CREDENTIALS = (
    "Make an API token at kaggle.com/settings/api and put it into ~/.kaggle/access_token (or the environment "
    "variable KAGGLE_API_TOKEN), or put a legacy kaggle.json into ~/.kaggle."
)
RULES = f"Accept the rules once in the browser: kaggle.com/competitions/{COMPETITION}/rules"


class ClientError(LaunchError):
    """The client or the service failed; the message names the request, the response and the remedy."""


class CredentialsError(ClientError):
    """There are no credentials, or Kaggle does not accept them."""


class RefusedError(ClientError):
    """Kaggle refused the request, so it had no effect.

    Attributes:
        status: the HTTP status; 200 where the refusal came in the body of a response.
    """

    def __init__(self, message: str, *, status: int = 200) -> None:
        super().__init__(message)
        self.status = status


class CapacityError(RefusedError):
    """The account already runs as many sessions as it may."""


class QuotaError(RefusedError):
    """The GPU hours of the week are used up."""


class EmptyKernelError(RefusedError):
    """A push was answered `Notebook not found`: a refused first push left a kernel without any version."""


class NoResponseError(ClientError):
    """There was no readable response: the request may or may not have had its effect.

    Attributes:
        retry_after: seconds that the service wants us to wait; 0 where it does not say.
    """

    def __init__(self, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UnexpectedResponseError(ClientError):
    """The response holds something this code does not know; it is not taken for success."""


class SourcesDroppedError(ClientError):
    """The push happened without some of its inputs, so the version that runs now cannot succeed.

    Attributes:
        version: number of the pushed version, if Kaggle returned one.
    """

    def __init__(self, message: str, *, version: int | None) -> None:
        super().__init__(message)
        self.version = version
