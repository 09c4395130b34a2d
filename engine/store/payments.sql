-- name: initiate
-- A payment begins; its first transaction.
select money.initiate($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)

-- name: begin_confirm
-- The money of a payment is about to be asked for.
select money.begin_confirm($1, $2, $3, $4, $5, $6, $7)

-- name: let_go
-- The first request with a key ended without an end.
select money.let_go($1)

-- name: settle
-- What a provider said and what follows from it; the second transaction.
select money.settle($1, $2, $3, $4, $5, $6, $7, $8)

-- name: prepared
-- The provider has prepared a charge.
select money.prepared($1, $2, $3)

-- name: hear
-- Facts of a payment that is not known (yet); how many were new.
select money.hear($1, $2, $3)

-- name: attach
-- Payments whose facts came before they were known.
select money.attach()

-- name: shown
-- A payment as its payer sees it, or null.
select case when money.may_open(p.lead_id, $2)
  then money.shown(p, (select min(reference) from booking.reference r where r.lead_id = p.lead_id)) end
from money.payment p where p.payment_id = $1

-- name: offered
-- The rows of a booking whose payment waits for the customer to choose other seats: booking, trip, its map then and the seats on it.
select b.booking_id::text, b.trip_no, b.map_version, b.seats
from money.payment p join booking.booking b using (lead_id)
where p.payment_id = $1 and money.may_open(p.lead_id, $2) order by b.booking_id

-- name: accept_seats
-- The customer takes other seats.
select money.accept_seats($1, $2, $3, $4, $5, $6, $7)

-- name: decline_seats
-- The customer wants the money back, or the offer is over.
select money.decline_seats($1, $2, $3, $4)

-- name: ask_refund
-- One refund of one payment; its first transaction.
select money.ask_refund($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)

-- name: plan_refund
-- Refunds over the payments of a lead, in the transaction of whoever needs them.
select money.plan_refund($1, $2, $3, $4, $5)

-- name: start_refund
-- A refund is about to be asked for (again); null: nothing to do now.
select money.start_refund($1, $2)

-- name: refund_failed
-- A try of a refund that came to nothing.
select money.refund_failed($1, $2, $3, $4, $5, $6)

-- name: shown_refund
-- A refund as people see it.
select money.shown_refund(r) from money.refund r where r.refund_id = $1

-- name: due_payments
-- Payments that somebody should look at now, each put off so that nobody else does; after seven days nothing is waited for any more.
update money.payment set tries = tries + 1,
  next_try_at = case when state = 'FAILED' and made_at < clock_timestamp() - interval '7 days' then null
    else clock_timestamp() + least(case state when 'FAILED' then interval '6 hours' else interval '1 hour' end,
      interval '5 seconds' * power(2, least(tries, 12))) end
where payment_id = any(array(
  select payment_id from money.payment where next_try_at <= clock_timestamp() order by next_try_at limit $1 for update skip locked))
returning payment_id::text, provider, state, deadline_at <= clock_timestamp() as over, amount, currency, scenario,
  (select min(reference) from booking.reference r where r.lead_id = payment.lead_id) as reference

-- name: due_refunds
-- Refunds that wait for a try, or whose try died.
select refund_id::text from money.refund where next_try_at <= clock_timestamp() and state in ('PENDING', 'RUNNING')
order by next_try_at limit $1

-- name: statement
-- A partner's account over a period, by day and kind: how often, and what it gave or took. Commission is of the same transactions.
with l as (
  select txn, kind, at, credit - debit as net from money.ledger
  where partner_id = $1 and account = 'PARTNER' and currency = $2 and at >= $3 and at < $4),
c as (
  select txn, sum(credit - debit) as commission from money.ledger
  where partner_id = $1 and account = 'COMMISSION' and currency = $2 and at >= $3 and at < $4 group by txn)
select (l.at at time zone 'UTC')::date as day, l.kind, count(*)::int as count, sum(l.net)::bigint as net,
  coalesce(sum(c.commission), 0)::bigint as commission
from l left join c using (txn) group by 1, 2 order by 1, 2

-- name: statement_lines
-- The same, transaction by transaction, from a transaction on.
select l.txn, l.at, l.kind, (l.credit - l.debit)::bigint as net, coalesce(c.commission, 0)::bigint as commission, l.payment_id::text,
  (select min(reference) from booking.reference r where r.lead_id = l.lead_id) as reference  -- an exchange leaves two
from money.ledger l left join lateral (select sum(credit - debit) as commission from money.ledger m
  where m.txn = l.txn and m.account = 'COMMISSION' and m.currency = l.currency) c on true
where l.partner_id = $1 and l.account = 'PARTNER' and l.currency = $2 and l.at >= $3 and l.at < $4 and l.txn > $5
order by l.txn limit $6

-- name: currencies
-- In which currencies a partner has an account.
select distinct currency from money.ledger where partner_id = $1 and account = 'PARTNER' order by currency

-- name: balance
-- What an account of a partner stood at before an instant.
select money.balance($1, $2, $3, $4)

-- name: settlements
-- Closed periods that touch a span, newest first.
select settlement_id::text, currency, from_at, to_at, amount, carried, closed_at from money.settlement
where partner_id = $1 and to_at > $2 and from_at < $3 order by to_at desc, currency limit 200

-- name: close_period
-- A period is paid out.
select money.close_period($1, $2, $3, $4, $5, $6)

-- name: unsound
-- Invariants of money that do not hold.
select rule, entity, said from money.unsound()
