"""How a call of the engine, or a transfer, fails."""

CODES = (
    "INVALID",
    "NOT_FOUND",
    "MISMATCH",
    "NOT_ALLOWED",
    "BUSY",
    "FULL",
    "UNSUPPORTED",
    "PEER_LOST",
    "CANCELLED",
    "DEADLINE",
    "CORRUPT",
    "STALE",
    "SYSTEM",
    "CLOSED",
)


class TransferError(Exception):
    """Carries `code`, one of CODES; their meaning is that of enum mkv_status."""

    def __init__(self, code: str, message: str):
        super().__init__(f"{code}: {message}")
        self.code = code


def of_status(status: int, message: str) -> TransferError:
    """The error of a status below zero."""
    return TransferError(CODES[-status - 1], message)
