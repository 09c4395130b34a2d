"""The ledger as data: which accounts there are and what each kind of transaction does to them. Pure; the database posts the same
(migrations/0024_payments.sql), and a test holds one against the other.

Double entry in whole minor units: the lines of a transaction add up to nothing. A positive amount is a debit, a negative one a credit.

    PROVIDER:name      what a provider holds for us                    CASH:drawer       what is in a drawer
    CUSTOMER           paid, and not yet earned                        CASH_DIFFERENCE   what was missing in drawers, or too much
    PARTNER            what we owe the operator                        CHARGEBACKS       taken back by banks and not yet anybody's loss
    COMMISSION         ours                                            BANK              paid out
    REFUNDS            promised back to customers
"""

from __future__ import annotations

from typing import Final

import msgspec

from engine.booking.money import scaled

CUSTOMER, PARTNER, COMMISSION, REFUNDS, CHARGEBACKS = "CUSTOMER", "PARTNER", "COMMISSION", "REFUNDS", "CHARGEBACKS"
CASH_DIFFERENCE, BANK = "CASH_DIFFERENCE", "BANK"

# kind -> what it means: the kinds that a statement lists
KINDS: Final[dict[str, str]] = {
    "CAPTURED": "money came from a customer through a provider",
    "CASH_TAKEN": "money came from a customer into a drawer",
    "SALE": "its booking was confirmed: the operator's and the platform's share",
    "REFUND": "money was promised back",
    "REFUND_PAID": "and has left",
    "REFUND_COVERED": "or was taken by the customer's bank meanwhile",
    "CHARGEBACK": "the customer's bank took money back",
    "CHARGEBACK_LOSS": "which was the operator's and the platform's",
    "DRAWER_OPENED": "the operator put its own money into a drawer",
    "DRAWER_COUNTED": "a drawer was counted and emptied",
    "PAYOUT": "the operator was paid out",
}

Lines = dict[str, int]  # account -> amount, positive to debit


class Sold(msgspec.Struct, frozen=True):
    """A payment as far as the ledger cares. `returned`: promised back or lost so far."""

    captured: int
    commission: int
    returned: int = 0


def captured(account: str, amount: int) -> Lines:
    """Money came, into a provider's account or a drawer."""
    return {account: amount, CUSTOMER: -amount}


def sale(amount: int, permille: int) -> tuple[Lines, Sold]:
    """It was earned: commission in permille, rounded once, half to even."""
    commission = scaled(amount, permille)
    return {CUSTOMER: amount, PARTNER: commission - amount, COMMISSION: -commission}, Sold(amount, commission)


def refund(sold: Sold, amount: int) -> tuple[Lines, Sold]:
    """Money is promised back. The commission's part is the share of all that went back so far, less what was reversed before: parts
    add up, and after the last one nothing of the commission is left. Raises `ValueError` for more than is left."""
    if not 0 < amount <= sold.captured - sold.returned:
        raise ValueError("more than is left")
    back = _reversed(sold, sold.returned + amount) - _reversed(sold, sold.returned)
    lines = {PARTNER: amount - back, COMMISSION: back, REFUNDS: -amount}
    return lines, Sold(sold.captured, sold.commission, sold.returned + amount)


def refund_paid(account: str, amount: int) -> Lines:
    """The money has left."""
    return {REFUNDS: amount, account: -amount}


def _reversed(sold: Sold, returned: int) -> int:
    return scaled(sold.commission, returned, sold.captured)


def added(*transactions: Lines) -> Lines:
    """What stands on each account after these; accounts at nothing are left out."""
    total: Lines = {}
    for lines in transactions:
        for account, amount in lines.items():
            total[account] = total.get(account, 0) + amount
    return {account: amount for account, amount in total.items() if amount}
