"""The compiled record batches (`_records.pyx`). Its interface is that of the reference, and so are its types."""

from protocol.columns import put_together as put_together
from protocol.columns import take_apart as take_apart
from protocol.records import BatchBuilder as BatchBuilder
from protocol.records import encode_batch as encode_batch
from protocol.records import read_records as read_records
from protocol.replay import frames as frames
