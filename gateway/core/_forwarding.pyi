"""The compiled forwarder (`_forwarding.pyx`). Its interface is that of the reference, and so are its types."""

from gateway.core.forwarding import Forwarder as Forwarder
from gateway.core.lanes import Lane as Lane
from gateway.core.lanes import Replies as Replies
from gateway.core.lanes import Room as Room
from gateway.core.session import Account as Account
from gateway.core.session import Session as Session
from gateway.core.session import Subscription as Subscription
