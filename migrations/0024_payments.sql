-- Money: payments, what providers said of them (facts), refunds, a double-entry ledger and settlements; and, apart, the memory of the
-- simulated providers. Minor units of the row's currency everywhere.
--
-- A provider is asked between two transactions, never inside one: the first says that we are about to ask, the second stores what was
-- answered. Whoever dies between them is finished by the reconciler, which asks the provider again by the same key.
-- State is a fold over facts by rank, not by arrival (engine/booking/payments.py has the same table and the same fold; a test compares them).
-- Lock order: key, trips, bookings by id (booking.locked), then the payments of the lead, then its refunds.

create schema money;

-- Late money whose seats are still free (money.reclaim).
insert into booking.edge (from_state, to_state) values ('EXPIRED', 'CONFIRMED');

-- Commission of the platform, permille of what is captured. No row: 50.
create table money.terms (
  partner_id text primary key references public.partner,
  permille int not null constraint terms_permille check (permille between 0 and 1000),
  changed_at timestamptz not null default clock_timestamp()
);

create table money.payment (
  payment_id uuid primary key,
  lead_id uuid not null,
  partner_id text not null,
  provider text not null,                    -- a name of settings.payment_providers, or CASH
  provider_ref text,                         -- what the provider calls it; null: not heard yet
  amount bigint not null constraint payment_amount check (amount >= 0),
  currency text not null,
  captured bigint not null default 0,        -- taken from the customer
  refunded bigint not null default 0,        -- gone back or planned to
  charged_back bigint not null default 0,    -- taken back by the customer's bank
  lost bigint not null default 0,            -- of that, what no promised refund covers: the operator's and the platform's loss
  commission bigint not null default 0,      -- of what was earned; reversed pro rata by refunds
  commission_back bigint not null default 0, -- of it reversed
  earned bool not null default false,        -- booked as a sale: its booking was confirmed
  state text not null constraint payment_state check (state in
    ('INITIATED', 'IN_PROGRESS', 'CONFIRMED', 'FAILED', 'OFFER_OTHER_SEATS', 'REFUNDING', 'REFUNDED', 'CHARGED_BACK')),
  reason text,                               -- of a failure or an offer
  version int not null default 1,            -- of its events
  scenario text[] not null default '{}',     -- faults that a simulated provider is to play
  actor text not null,
  key uuid,                                  -- the idempotency key whose request is under way; null: none
  made_at timestamptz not null default clock_timestamp(),
  deadline_at timestamptz not null,          -- without money by then it has failed; an offer of other seats ends then
  next_try_at timestamptz,                   -- when the reconciler looks at it next; null: nothing is waited for
  tries int not null default 0,
  active bool not null generated always as (state in ('INITIATED', 'IN_PROGRESS')) stored,  -- INITIATED -> IN_PROGRESS touches no index: HOT
  constraint payment_refund_within check (refunded >= 0 and refunded <= captured),
  constraint payment_charged_back_within check (charged_back >= 0 and charged_back <= captured)
) with (fillfactor = 80);
create index payment_lead on money.payment (lead_id);
create unique index payment_active on money.payment (lead_id) where active;
create index payment_due on money.payment (next_try_at) where next_try_at is not null;

-- How much a kind of fact weighs: its place in this list.
create function money.rank(p_kind text) returns int language sql immutable as $$
  select array_position(array['CREATED', 'PENDING', 'AUTHORIZED', 'FAILED', 'CAPTURED', 'REFUNDED', 'CHARGED_BACK'], p_kind)
$$;

-- What a provider said, once each. Of a payment that we do not know: payment_id null, partner_id '-', until the reconciler finds it.
create table money.fact (
  provider text not null,
  event_id text not null,
  payment_id uuid,
  partner_id text not null,
  reference text not null,                   -- our key as the provider gives it back: the payment's id
  provider_ref text,
  kind text not null constraint fact_kind check (money.rank(kind) is not null),
  amount bigint not null,
  currency text not null,
  part text,                                 -- of a refund our refund's id, of a chargeback the dispute's; a part counts once
  reason text,
  at timestamptz not null,                   -- the provider's
  received_at timestamptz not null default clock_timestamp(),
  constraint fact_once primary key (provider, event_id)
);
create index fact_payment on money.fact (payment_id);
create index fact_unknown on money.fact (received_at) where payment_id is null;
revoke update, delete, truncate on money.fact from timepoint_app;
grant update (payment_id, partner_id) on money.fact to timepoint_app;

create table money.refund (
  refund_id uuid primary key,
  payment_id uuid not null references money.payment,
  lead_id uuid not null,
  partner_id text not null,
  amount bigint not null constraint refund_amount check (amount > 0),
  currency text not null,
  state text not null constraint refund_state check (state in ('PENDING', 'RUNNING', 'DONE', 'FAILED', 'SUPERSEDED', 'AT_COUNTER')),
  tries int not null default 0,
  next_try_at timestamptz,                   -- null: nothing is waited for
  reason text not null,
  fault text,                                -- what the last try met
  key uuid,                                  -- the idempotency key whose request is under way
  made_at timestamptz not null default clock_timestamp(),
  done_at timestamptz
);
create index refund_payment on money.refund (payment_id);
create index refund_lead on money.refund (lead_id);
create index refund_due on money.refund (next_try_at) where next_try_at is not null;

-- What the money of another booking counts for in the price of this one (an exchange).
create table money.credit (
  lead_id uuid primary key,
  partner_id text not null,
  from_lead uuid not null,
  amount bigint not null constraint credit_amount check (amount >= 0)
);

-- Double entry. Accounts: PROVIDER:name (what a provider holds for us), CUSTOMER (paid, not yet earned), PARTNER (what we owe the operator),
-- COMMISSION, REFUNDS (promised back), CHARGEBACKS, CASH:drawer, CASH_DIFFERENCE, BANK (paid out).
create sequence money.txn;
create table money.ledger (
  txn bigint not null,
  line int2 not null,
  partner_id text not null,
  currency text not null,
  account text not null,
  debit bigint not null default 0,
  credit bigint not null default 0,
  kind text not null,                        -- CAPTURED, SALE, REFUND, REFUND_PAID, CHARGEBACK, ...
  payment_id uuid,
  lead_id uuid,
  at timestamptz not null default clock_timestamp(),
  primary key (txn, line),
  constraint ledger_one_side check (debit >= 0 and credit >= 0 and (debit = 0) <> (credit = 0))
);
create index ledger_account on money.ledger (partner_id, account, currency, at);
revoke update, delete, truncate on money.ledger from timepoint_app;

-- A period that was paid out to an operator.
create table money.settlement (
  settlement_id uuid primary key,
  partner_id text not null references public.partner,
  currency text not null,
  from_at timestamptz not null,
  to_at timestamptz not null,
  amount bigint not null constraint settlement_amount check (amount >= 0),
  carried bigint not null,                   -- what the operator owes us and takes into the next period, as a negative amount
  txn bigint,                                -- the payout; null: there was nothing to pay
  closed_at timestamptz not null default clock_timestamp(),
  closed_by text not null,
  constraint settlement_once unique (partner_id, currency, to_at),
  constraint settlement_forwards check (from_at < to_at)
);

select office.fence('money.terms'), office.fence('money.payment'), office.fence('money.fact'), office.fence('money.refund'),
  office.fence('money.credit'), office.fence('money.ledger'), office.fence('money.settlement');

-- What one statement writes adds up to nothing, in each transaction of the ledger and each currency; since no row is ever changed or deleted,
-- the whole does. (A deferred constraint trigger asked the same five times a sale, once a line, for 70 us each.)
create function money.balanced() returns trigger language plpgsql as $$
declare wrong bigint;
begin
  select txn into wrong from written group by txn, currency having sum(debit) <> sum(credit) limit 1;
  if found then raise exception 'LEDGER_UNBALANCED' using errcode = 'TP500', detail = wrong::text; end if;
  return null;
end $$;
create trigger ledger_balanced after insert on money.ledger referencing new table as written
  for each statement execute function money.balanced();

-- ------------------------------------------------------------------------------------------------ sums

create function money.permille(p_partner text) returns int language plpgsql stable as $$
begin
  return coalesce((select permille from money.terms where partner_id = p_partner), 50);
end $$;

-- amount * part / whole, rounded once, half to even.
create function money.share(p_amount bigint, p_part bigint, p_whole bigint) returns bigint language plpgsql immutable as $$
declare n numeric := p_amount::numeric * p_part; q numeric; r numeric;
begin
  if p_whole = 0 then return 0; end if;
  q := div(n, p_whole); r := 2 * (n - q * p_whole);
  return q + case when r > p_whole or (r = p_whole and q % 2 = 1) then 1 else 0 end;
end $$;

-- What of a lead's money is here: captured, less what has gone back or is to.
create function money.paid(p_lead uuid) returns bigint language plpgsql volatile as $$
begin
  return (select coalesce(sum(captured - refunded - charged_back), 0) from money.payment where lead_id = p_lead);
end $$;

-- What is still to be paid for a lead.
create function money.due(p_lead uuid) returns bigint language plpgsql volatile as $$
begin
  return (select coalesce(sum(total), 0) from booking.booking where lead_id = p_lead)
    - (select coalesce(sum(captured - refunded - charged_back), 0) from money.payment where lead_id = p_lead)
    - coalesce((select amount from money.credit where lead_id = p_lead), 0);
end $$;

-- One transaction of the ledger: amounts beside accounts, positive to debit, negative to credit. Lines of nothing are left out.
create function money.post(p_partner text, p_currency text, p_kind text, p_payment uuid, p_lead uuid, p_accounts text[], p_amounts bigint[])
returns bigint language plpgsql volatile as $$
declare v_txn bigint := nextval('money.txn');
begin
  insert into money.ledger (txn, line, partner_id, currency, account, debit, credit, kind, payment_id, lead_id)
    select v_txn, ord, p_partner, p_currency, account, greatest(amount, 0), greatest(-amount, 0), p_kind, p_payment, p_lead
    from unnest(p_accounts, p_amounts) with ordinality t(account, amount, ord) where amount <> 0;
  return v_txn;
end $$;

-- ------------------------------------------------------------------------------------------------ hooks of an exchange, and what it moves

create function money.may_confirm(p_lead uuid) returns bool language plpgsql volatile as $$
begin
  return true;
end $$;

create function money.confirmed(p_lead uuid, p_ids uuid[], p_actor text, p_request text) returns void language plpgsql volatile as $$
begin
  null;
end $$;

-- The payments of one booking become another's: refunds of that one reach them.
create function money.carry(p_from uuid, p_to uuid) returns void language plpgsql volatile as $$
begin
  update money.payment set lead_id = p_to where lead_id = p_from;
  update money.refund set lead_id = p_to where lead_id = p_from;
  delete from money.credit where lead_id = p_to;
end $$;

-- ------------------------------------------------------------------------------------------------ what people see

create function money.shown(p money.payment, p_reference text) returns jsonb language plpgsql volatile as $$
begin
  return jsonb_build_object('id', p.payment_id, 'status', p.state, 'bookingRef', p_reference, 'provider', p.provider,
    'amount', jsonb_build_object('amount', p.amount, 'currency', p.currency),
    'refunded', jsonb_build_object('amount', p.refunded, 'currency', p.currency), 'reason', p.reason);
end $$;

-- Whether a lead is this caller's to open: {"all", "partner", "actor", "guest", "opened"} (engine/booking/callers.py has the same rule).
create function money.may_open(p_lead uuid, p_who jsonb) returns bool language plpgsql volatile as $$
begin
  return (p_who->>'all')::bool or exists (select from booking.booking where lead_id = p_lead and (partner_id = p_who->>'partner'
    or holder in (p_who->>'actor', p_who->>'guest') or booking_id = (p_who->>'opened')::uuid or lead_id = (p_who->>'opened')::uuid));
end $$;

-- The answer kept for a key, null, or (where the request with it died) {"status": "ABANDONED", "payment"}: whoever asks again goes on with it.
create function money.answered(p_key uuid, p_print bytea, p_run interval) returns jsonb language plpgsql volatile as $$
declare v_answer jsonb := booking.answered(p_key, p_print);
begin
  if v_answer->>'status' = 'IN_PROGRESS' then
    if (v_answer->>'until')::timestamptz > clock_timestamp() then return '{"status":"REFUSED","code":"IDEMPOTENCY_IN_PROGRESS"}'; end if;
    update office.idempotency set answer = answer || jsonb_build_object('until', clock_timestamp() + p_run) where key = p_key;
    return v_answer || '{"status":"ABANDONED"}';
  end if;
  return v_answer;
end $$;

create function money.running(p_key uuid, p_partner text, p_print bytea, p_run interval, p_http int, p_payment uuid) returns void
language plpgsql volatile as $$
begin
  if p_key is not null then
    insert into office.idempotency (key, partner_id, fingerprint, answer, keep_until) values (p_key, p_partner, p_print,
      jsonb_build_object('status', 'IN_PROGRESS', 'until', clock_timestamp() + p_run, 'http', p_http, 'payment', p_payment),
      clock_timestamp() + interval '7 days');
  end if;
end $$;

-- The end of a request that was under way: its answer, or (null: it came to nothing that has to be said again) nothing at all.
create function money.finish(p_key uuid, p_body jsonb) returns void language plpgsql volatile as $$
begin
  if p_key is null then return; end if;
  if p_body is null then delete from office.idempotency where key = p_key and answer->>'status' = 'IN_PROGRESS';
  else
    update office.idempotency set answer = jsonb_build_object('status', 'DONE', 'http', (answer->>'http')::int, 'body', p_body)
      where key = p_key and answer->>'status' = 'IN_PROGRESS';
  end if;
end $$;

-- ------------------------------------------------------------------------------------------------ first transactions

-- A payment begins: the booking is kept from expiry until the provider's limit (p_limit from now, at most p_most + p_limit after the hold
-- began). Answers {"status": "BEGUN", ...}, {"status": "DONE", ...} of an earlier request, or {"status": "REFUSED", "code"}.
create function money.initiate(p_key uuid, p_print bytea, p_run interval, p_payment uuid, p_reference text, p_provider text, p_scenario text[],
  p_limit interval, p_most interval, p_who jsonb, p_actor text, p_request text) returns jsonb language plpgsql volatile as $$
declare v_answer jsonb; v_lead uuid; b record; v_due bigint; v_until timestamptz; p money.payment;
begin
  perform set_config('tp.partner', '*', true);
  v_answer := money.answered(p_key, p_print, p_run);
  if v_answer->>'status' = 'ABANDONED' then
    select * into p from money.payment where payment_id = (v_answer->>'payment')::uuid;
    return jsonb_build_object('status', 'BEGUN', 'payment', p.payment_id, 'provider', p.provider, 'amount', p.amount, 'currency', p.currency,
      'scenario', p.scenario, 'ref', p_reference);
  end if;
  if v_answer is not null then return v_answer; end if;
  select lead_id into v_lead from booking.reference where reference = p_reference;
  if v_lead is null then return '{"status":"REFUSED","code":"NOT_FOUND"}'; end if;
  select min(partner_id) as partner, array_agg(booking_id) as ids, bool_and(state = 'PENDING_PAYMENT') as pending, min(state) as state,
    bool_or(paying) as paying, min(expires_at) as until, min(held_at) as held_at, min(currency) as currency into b from booking.locked(v_lead);
  if b.ids is null or not money.may_open(v_lead, p_who) then return '{"status":"REFUSED","code":"NOT_FOUND"}'; end if;
  if b.paying then return '{"status":"REFUSED","code":"PAYMENT_IN_PROGRESS"}'; end if;
  if b.state = 'EXPIRED' or (b.pending and b.until <= clock_timestamp()) then return '{"status":"REFUSED","code":"HOLD_EXPIRED"}'; end if;
  if not b.pending then return jsonb_build_object('status', 'REFUSED', 'code', 'WRONG_STATE', 'state', b.state); end if;
  v_due := money.due(v_lead);
  if v_due < 0 then return '{"status":"REFUSED","code":"NOTHING_DUE"}'; end if;
  v_until := greatest(b.until, least(clock_timestamp() + p_limit, b.held_at + p_most + p_limit));
  update booking.booking set paying = true, expires_at = v_until where lead_id = v_lead;
  insert into money.payment (payment_id, lead_id, partner_id, provider, amount, currency, state, scenario, actor, key, deadline_at, next_try_at)
    values (p_payment, v_lead, b.partner, p_provider, v_due, b.currency, 'INITIATED', p_scenario, p_actor, p_key, v_until,
      clock_timestamp() + p_run);
  perform office.record(b.partner, p_actor, p_request, 'payment', 'INITIATED', p_payment, 1, jsonb_build_object('bookingId', v_lead,
    'ref', p_reference, 'provider', p_provider, 'amount', v_due, 'currency', b.currency), jsonb_build_object('state', 'INITIATED'));
  perform money.running(p_key, b.partner, p_print, p_run, 201, p_payment);
  return jsonb_build_object('status', 'BEGUN', 'payment', p_payment, 'provider', p_provider, 'amount', v_due, 'currency', b.currency,
    'scenario', p_scenario, 'ref', p_reference);
end $$;

-- The money of a payment is about to be asked for. Answers as initiate does.
create function money.begin_confirm(p_key uuid, p_print bytea, p_run interval, p_payment uuid, p_who jsonb, p_actor text, p_request text)
returns jsonb language plpgsql volatile as $$
declare v_answer jsonb; p money.payment; v_reference text; v_theirs bool;
begin
  perform set_config('tp.partner', '*', true);
  v_answer := money.answered(p_key, p_print, p_run);
  if v_answer is not null and v_answer->>'status' <> 'ABANDONED' then return v_answer; end if;
  select * into p from money.payment where payment_id = p_payment for update;
  select min(reference), bool_or((p_who->>'all')::bool or partner_id = p_who->>'partner'
      or holder in (p_who->>'actor', p_who->>'guest') or booking_id = (p_who->>'opened')::uuid or lead_id = (p_who->>'opened')::uuid)
    into v_reference, v_theirs from booking.booking where lead_id = p.lead_id;
  if v_theirs is not true then return '{"status":"REFUSED","code":"NOT_FOUND"}'; end if;
  if p.state = 'CONFIRMED' then
    if v_answer is null then perform money.running(p_key, p.partner_id, p_print, p_run, 200, p_payment); end if;
    perform money.finish(p_key, money.shown(p, v_reference));
    return jsonb_build_object('status', 'DONE', 'http', 200, 'body', money.shown(p, v_reference));
  end if;
  if p.state not in ('INITIATED', 'IN_PROGRESS') then
    perform money.finish(p_key, null);
    return jsonb_build_object('status', 'REFUSED', 'code', case p.state when 'FAILED' then 'PAYMENT_FAILED' when 'OFFER_OTHER_SEATS'
      then 'OFFER_OTHER_SEATS' else 'PAYMENT_REFUNDED' end, 'reason', p.reason);
  end if;
  update money.payment set state = 'IN_PROGRESS', key = p_key, tries = 0,
      next_try_at = case when next_try_at > clock_timestamp() + 2 * p_run then clock_timestamp() + p_run else next_try_at end
    where payment_id = p_payment;
  insert into office.audit (partner_id, actor, request_id, action, entity_kind, entity_id, diff)
    values (p.partner_id, p_actor, p_request, 'payment.IN_PROGRESS', 'payment', p_payment, '{"state":"IN_PROGRESS"}');
  if v_answer is null then perform money.running(p_key, p.partner_id, p_print, p_run, 200, p_payment); end if;
  return jsonb_build_object('status', 'BEGUN', 'payment', p_payment, 'provider', p.provider, 'amount', p.amount, 'currency', p.currency,
    'scenario', p.scenario, 'ref', v_reference);
end $$;

-- The first request is over without an end (the provider did not answer): whoever asks again with its key may go on at once.
create function money.let_go(p_key uuid) returns void language plpgsql volatile as $$
begin
  perform set_config('tp.partner', '*', true);
  update office.idempotency set answer = answer || jsonb_build_object('until', clock_timestamp())
    where key = p_key and answer->>'status' = 'IN_PROGRESS';
end $$;

-- ------------------------------------------------------------------------------------------------ steps of the second transaction

-- The seats of expired rows again, all or none; a stranger's hold that is over makes room. The rows and their trips are locked.
create function money.reclaim(p_ids uuid[], p_request text) returns bool language plpgsql volatile as $$
declare v_wanted int; v_got int; v_over uuid[];
begin
  if exists (select from booking.booking b join sale.trip_instance i using (trip_no) where b.booking_id = any(p_ids)
      and (i.status <> 'SCHEDULED' or i.departs_at <= clock_timestamp() or i.map_version <> b.map_version)) then return false; end if;
  select array_agg(distinct o.booking_id) into v_over from booking.booking b, unnest(b.seats) s,
      lateral (select booking_id from booking.seat_claim where trip_no = b.trip_no and map_version = b.map_version and seat = s and active
        and legs && b.legs offset 0) c,
      lateral (select booking_id from booking.booking where booking_id = c.booking_id and state in ('HELD', 'PENDING_PAYMENT') and not paying
        and expires_at <= clock_timestamp() offset 0) o
    where b.booking_id = any(p_ids);
  if v_over is not null then perform booking.expire(v_over, p_request); end if;
  select sum(cardinality(seats)) into v_wanted from booking.booking where booking_id = any(p_ids);
  with c as (
    insert into booking.seat_claim (booking_id, map_version, seat, partner_id, trip_no, legs, state)
    select b.booking_id, b.map_version, s, b.partner_id, b.trip_no, b.legs, 'HELD' from booking.booking b, unnest(b.seats) s
      where b.booking_id = any(p_ids) order by b.trip_no, s
    on conflict on constraint seat_leg_sold_once do nothing returning seat)
  select count(*) into v_got from c;
  if v_got = v_wanted then return true; end if;
  delete from booking.seat_claim where booking_id = any(p_ids) and state = 'HELD';
  return false;
end $$;

-- A captured payment becomes a sale, its booking is confirmed, its tickets are issued. Answers the payment as it is to be stored.
create function money.earn(p money.payment, p_ids uuid[], p_reference text, p_actor text, p_request text) returns money.payment
language plpgsql volatile as $$
begin
  p.commission := money.share(p.captured, money.permille(p.partner_id), 1000);
  p.earned := true; p.state := 'CONFIRMED'; p.reason := null; p.next_try_at := null; p.version := p.version + 1;
  perform money.post(p.partner_id, p.currency, 'SALE', p.payment_id, p.lead_id, array['CUSTOMER', 'PARTNER', 'COMMISSION'],
    array[p.captured, p.commission - p.captured, -p.commission]);
  if p_ids is not null then
    perform booking.move(p_ids, 'CONFIRMED', p_actor, p_request);
    perform ticket.issue(p_ids, p_actor, p_request);
    perform money.confirmed(p.lead_id, p_ids, p_actor, p_request);
  end if;
  perform office.record(p.partner_id, p_actor, p_request, 'payment', 'CONFIRMED', p.payment_id, p.version, jsonb_build_object('bookingId',
    p.lead_id, 'ref', p_reference, 'provider', p.provider, 'amount', p.captured, 'currency', p.currency), '{"state":"CONFIRMED"}');
  return p;
end $$;

-- Money of one payment is promised back: a refund row and its postings. The payment's row is locked by the caller and stored here.
create function money.promise(p money.payment, p_amount bigint, p_reason text, p_refund uuid, p_state text default null) returns uuid
language plpgsql volatile as $$
declare v_back bigint := 0;
begin
  if p.earned then    -- pro rata of all that went back so far: after the last part nothing of the commission is left
    v_back := money.share(p.commission, p.refunded + p.charged_back + p_amount, p.captured) - p.commission_back;
  end if;
  update money.payment set refunded = refunded + p_amount, commission_back = commission_back + v_back where payment_id = p.payment_id;
  insert into money.refund (refund_id, payment_id, lead_id, partner_id, amount, currency, state, next_try_at, reason)
    values (p_refund, p.payment_id, p.lead_id, p.partner_id, p_amount, p.currency,
      coalesce(p_state, case p.provider when 'CASH' then 'AT_COUNTER' else 'PENDING' end),
      case when p_state is null and p.provider <> 'CASH' then clock_timestamp() + interval '2 seconds' end, p_reason);
  perform money.post(p.partner_id, p.currency, 'REFUND', p.payment_id, p.lead_id, array['CUSTOMER', 'PARTNER', 'COMMISSION', 'REFUNDS'],
    array[case when p.earned then 0 else p_amount end, case when p.earned then p_amount - v_back else 0 end, v_back, -p_amount]);
  return p_refund;
end $$;

-- The money of a refund has left (provider, or a drawer). Bookings that only waited for it become REFUNDED.
create function money.refund_done(p_refund uuid, p_account text, p_actor text, p_request text) returns void language plpgsql volatile as $$
declare r money.refund; p money.payment; v_ids uuid[]; v_whole bool;
begin
  update money.refund set state = 'DONE', done_at = clock_timestamp(), next_try_at = null, fault = null where refund_id = p_refund
    and state not in ('DONE', 'SUPERSEDED') returning * into r;
  if not found then return; end if;
  perform money.post(r.partner_id, r.currency, 'REFUND_PAID', r.payment_id, r.lead_id, array['REFUNDS', p_account], array[r.amount, -r.amount]);
  select not exists (select from money.refund where payment_id = r.payment_id and state not in ('DONE', 'SUPERSEDED')) into v_whole;
  update money.payment set version = version + 1, state = case when v_whole and refunded + charged_back = captured and state <> 'CHARGED_BACK'
    then 'REFUNDED' else state end where payment_id = r.payment_id returning * into p;
  perform office.record(p.partner_id, p_actor, p_request, 'payment', 'REFUNDED', p.payment_id, p.version, jsonb_build_object('bookingId',
    p.lead_id, 'refundId', r.refund_id, 'amount', r.amount, 'currency', r.currency, 'refunded', p.refunded, 'reason', r.reason),
    jsonb_build_object('state', p.state));
  perform money.finish(r.key, jsonb_build_object('id', r.refund_id, 'paymentId', r.payment_id, 'status', 'DONE', 'reason', r.reason,
    'amount', jsonb_build_object('amount', r.amount, 'currency', r.currency)));
  perform money.close_booking(r.lead_id, p_actor, p_request);
end $$;

-- Rows whose money was to go back and has: CANCELLED, NO_SHOW and EXPIRED become REFUNDED once no refund of the lead is open.
create function money.close_booking(p_lead uuid, p_actor text, p_request text) returns void language plpgsql volatile as $$
declare v_ids uuid[];
begin
  if exists (select from money.refund where lead_id = p_lead and state in ('PENDING', 'RUNNING', 'FAILED', 'AT_COUNTER')) then return; end if;
  select array_agg(booking_id) into v_ids from booking.booking where lead_id = p_lead
    and (state in ('CANCELLED', 'EXPIRED') or state = 'NO_SHOW' and money.paid(p_lead) <= 0);  -- a part given back leaves a no-show one
  if v_ids is not null then perform booking.move(v_ids, 'REFUNDED', p_actor, p_request); end if;
end $$;

-- The customer's bank took money back. Refunds that have not left yet are covered by it; the rest is the operator's and the platform's loss,
-- pro rata; what had been refunded before stays on CHARGEBACKS, a case for people. The ticket goes with the money.
create function money.charge_back(p money.payment, p_total bigint, p_actor text, p_request text) returns void language plpgsql volatile as $$
declare v_new bigint := least(p_total, p.captured) - p.charged_back; v_open bigint; v_covered bigint; v_loss bigint; v_back bigint := 0;
  r record; v_ids uuid[];
begin
  perform money.post(p.partner_id, p.currency, 'CHARGEBACK', p.payment_id, p.lead_id, array['CHARGEBACKS', 'PROVIDER:' || p.provider],
    array[v_new, -v_new]);
  select coalesce(sum(amount), 0) into v_covered from money.refund where payment_id = p.payment_id and state = 'SUPERSEDED';
  v_open := p.charged_back + v_new - v_covered - p.lost;
  for r in select * from money.refund where payment_id = p.payment_id and state = 'PENDING' order by refund_id for update loop
    continue when r.amount > v_open;
    perform money.supersede(r.refund_id);
    v_open := v_open - r.amount; v_covered := v_covered + r.amount; p.refunded := p.refunded - r.amount;
  end loop;
  v_loss := greatest(least(v_open, p.captured - p.refunded - v_covered - p.lost), 0);
  if v_loss > 0 then
    if p.earned then v_back := money.share(p.commission, p.refunded + v_covered + p.lost + v_loss, p.captured) - p.commission_back; end if;
    perform money.post(p.partner_id, p.currency, 'CHARGEBACK_LOSS', p.payment_id, p.lead_id, array['CUSTOMER', 'PARTNER', 'COMMISSION',
      'CHARGEBACKS'], array[case when p.earned then 0 else v_loss end, case when p.earned then v_loss - v_back else 0 end, v_back, -v_loss]);
  end if;
  update money.payment set charged_back = charged_back + v_new, lost = lost + v_loss, commission_back = commission_back + v_back,
    state = 'CHARGED_BACK', version = version + 1, next_try_at = null where payment_id = p.payment_id returning * into p;
  perform office.record(p.partner_id, p_actor, p_request, 'payment', 'REFUNDED', p.payment_id, p.version, jsonb_build_object('bookingId',
    p.lead_id, 'amount', v_new, 'currency', p.currency, 'refunded', p.refunded, 'reason', 'CHARGEBACK'), '{"state":"CHARGED_BACK"}');
  select array_agg(booking_id) into v_ids from booking.booking where lead_id = p.lead_id and state in ('CONFIRMED', 'CHECKED_IN');
  if v_ids is not null and money.paid(p.lead_id) <= 0 then
    perform booking.move(v_ids, 'CANCELLED', p_actor, p_request, null, '{"why":"CHARGEBACK"}');
    perform ticket.revoke(v_ids, null, p_actor, p_request);
  end if;
  perform money.close_booking(p.lead_id, p_actor, p_request);
end $$;

-- A refund whose money the customer's bank has already taken: never sent, its promise is covered by the chargeback.
create function money.supersede(p_refund uuid) returns void language plpgsql volatile as $$
declare r money.refund;
begin
  update money.refund set state = 'SUPERSEDED', done_at = clock_timestamp(), next_try_at = null where refund_id = p_refund
    and state not in ('DONE', 'SUPERSEDED') returning * into r;
  if not found then return; end if;
  update money.payment set refunded = refunded - r.amount where payment_id = r.payment_id;
  perform money.post(r.partner_id, r.currency, 'REFUND_COVERED', r.payment_id, r.lead_id, array['REFUNDS', 'CHARGEBACKS'],
    array[r.amount, -r.amount]);
  perform money.finish(r.key, jsonb_build_object('id', r.refund_id, 'paymentId', r.payment_id, 'status', 'SUPERSEDED', 'reason', r.reason,
    'amount', jsonb_build_object('amount', r.amount, 'currency', r.currency)));
end $$;

-- Refunds over the payments of a lead, newest first; all that is left where no amount is given. To be called with the lead's rows locked;
-- the answer names the refunds, to be sent by whoever has committed this (or by the reconciler).
create function money.plan_refund(p_lead uuid, p_amount bigint, p_reason text, p_actor text, p_request text) returns uuid[]
language plpgsql volatile as $$
declare p money.payment; v_left bigint; v_part bigint; v_ids uuid[] := '{}';
begin
  perform from money.payment where lead_id = p_lead order by payment_id for update;
  select coalesce(sum(greatest(captured - refunded - charged_back, 0)), 0) into v_left from money.payment where lead_id = p_lead;
  if p_amount > v_left or p_amount < 0 then
    raise exception 'REFUND_TOO_MUCH' using errcode = 'TP409', detail = 'of this booking ' || v_left || ' is left to refund, in minor units',
      hint = v_left::text; end if;
  v_left := coalesce(p_amount, v_left);
  for p in select * from money.payment where lead_id = p_lead and captured - refunded - charged_back > 0 order by made_at desc, payment_id loop
    exit when v_left = 0;
    v_part := least(v_left, p.captured - p.refunded - p.charged_back);
    v_ids := v_ids || money.promise(p, v_part, p_reason, gen_random_uuid());
    insert into office.audit (partner_id, actor, request_id, action, entity_kind, entity_id, diff) values (p.partner_id, p_actor, p_request, 'payment.REFUND_PLANNED',
      'payment', p.payment_id, jsonb_build_object('amount', v_part, 'reason', p_reason, 'refundId', v_ids[cardinality(v_ids)]));
    v_left := v_left - v_part;
  end loop;
  return v_ids;
end $$;

-- What the provider said, what follows from it, and the answer to whoever asked: the whole second transaction. p_facts: [{"event", "ref",
-- "kind", "amount", "currency", "part", "reason", "at"}]. p_give_up: no money by now is a failure. Answers {"status", "booking", "body",
-- "refunds": [ids to be sent], ...}; NOT_FOUND: no such payment of that provider (null: of whichever).
create function money.settle(p_payment uuid, p_provider text, p_facts jsonb, p_give_up bool, p_offer interval, p_key uuid, p_actor text,
  p_request text) returns jsonb
language plpgsql volatile as $$
declare v_lead uuid; b record; p money.payment; f record; v_reference text; v_body jsonb; v_before text; v_key uuid; v_keys uuid[];
  v_confirm bool := false; v_failed bool; v_refunds uuid[];
begin
  perform set_config('tp.partner', '*', true);
  select lead_id into v_lead from money.payment where payment_id = p_payment and provider = coalesce(p_provider, provider);
  if v_lead is null then return '{"status":"NOT_FOUND"}'; end if;
  select array_agg(booking_id) as ids, bool_and(state = 'PENDING_PAYMENT') as pending, bool_and(state = 'EXPIRED') as gone,
    min(reference) as reference into b from booking.locked(v_lead);
  select * into p from money.payment where payment_id = p_payment for update;
  v_before := p.state; v_reference := b.reference;
  insert into money.fact (provider, event_id, payment_id, partner_id, reference, provider_ref, kind, amount, currency, part, reason, at)
    select p.provider, event, p_payment, p.partner_id, p_payment::text, ref, kind, amount, currency, part, reason, at
    from jsonb_to_recordset(p_facts) as x(event text, ref text, kind text, amount bigint, currency text, part text, reason text, at timestamptz)
    on conflict on constraint fact_once do nothing;

  -- The fold: facts by rank; a capture counts once, chargebacks (and, in fold_returns, refunds) once for each part.
  select max(money.rank(kind)) as rank, max(amount) filter (where kind = 'CAPTURED') as captured,
      min(reason) filter (where kind = 'FAILED') as reason, min(provider_ref) as ref
    into f from money.fact where payment_id = p_payment and currency = p.currency;
  v_failed := f.rank = money.rank('FAILED');
  p.provider_ref := coalesce(p.provider_ref, f.ref);

  if f.captured is not null and p.state in ('INITIATED', 'IN_PROGRESS', 'FAILED') then
    p.captured := f.captured; p.next_try_at := null;
    perform money.post(p.partner_id, p.currency, 'CAPTURED', p_payment, p.lead_id, array['PROVIDER:' || p.provider, 'CUSTOMER'],
      array[p.captured, -p.captured]);
    if p.captured < p.amount then p.reason := 'UNDERPAID';
    elsif b.pending then
      v_confirm := money.may_confirm(p.lead_id);
      if not v_confirm then
        p.reason := 'NOT_POSSIBLE_ANY_MORE';
        perform booking.move(b.ids, 'CANCELLED', p_actor, p_request);
      end if;
    elsif b.gone and p.captured = p.amount and money.due(p.lead_id) = p.captured and money.may_confirm(p.lead_id)
        and sale.retake(p.lead_id) then   -- its promo code and its ancillaries, while there are some
      v_confirm := money.reclaim(b.ids, p_request);
      if not v_confirm then
        p.reason := 'SEATS_GONE';
        if not exists (select from booking.booking k join sale.trip_instance i using (trip_no) where k.lead_id = v_lead
            and (i.status <> 'SCHEDULED' or i.departs_at <= clock_timestamp())) then p.state := 'OFFER_OTHER_SEATS'; end if;
      end if;
    else p.reason := 'NOT_NEEDED';
    end if;
    if v_confirm then
      p := money.earn(p, b.ids, v_reference, p_actor, p_request);
    elsif p.state = 'OFFER_OTHER_SEATS' then
      p.deadline_at := clock_timestamp() + p_offer; p.next_try_at := p.deadline_at; p.version := p.version + 1;
      perform office.record(p.partner_id, p_actor, p_request, 'payment', 'SEATS_OFFERED', p_payment, p.version, jsonb_build_object(
        'bookingId', p.lead_id, 'ref', v_reference, 'amount', p.captured, 'currency', p.currency, 'until', p.deadline_at), '{"state":"OFFER_OTHER_SEATS"}');
    else
      p.state := 'REFUNDING';
      if v_before <> 'FAILED' then update booking.booking set paying = false where lead_id = p.lead_id and paying; end if;
    end if;
  elsif p.state in ('INITIATED', 'IN_PROGRESS') and (v_failed or p_give_up) then
    p.state := 'FAILED'; p.reason := coalesce(f.reason, 'NO_ANSWER'); p.version := p.version + 1;
    p.next_try_at := case when v_failed then null else clock_timestamp() + interval '1 minute' end;   -- it may still come, late
    p.tries := 0;
    update booking.booking set paying = false where lead_id = p.lead_id and paying;
    perform office.record(p.partner_id, p_actor, p_request, 'payment', 'FAILED', p_payment, p.version, jsonb_build_object('bookingId',
      p.lead_id, 'ref', v_reference, 'provider', p.provider, 'amount', p.amount, 'currency', p.currency, 'reason', p.reason), '{"state":"FAILED"}');
  end if;
  v_keys := case when f.rank is not null or p.state = 'FAILED' then array_remove(array[p.key, nullif(p_key, p.key)], null) end;
  if v_keys is not null then p.key := null; end if;
  update money.payment set provider_ref = p.provider_ref, captured = p.captured, state = p.state, reason = p.reason, version = p.version,
      commission = p.commission, earned = p.earned, deadline_at = p.deadline_at, next_try_at = p.next_try_at, tries = p.tries, key = p.key
    where payment_id = p_payment;

  if p.state = 'REFUNDING' and v_before <> 'REFUNDING' and p.captured > 0 then
    v_refunds := array[money.promise(p, p.captured, p.reason, gen_random_uuid())];
  elsif v_confirm and p.captured > p.amount then
    v_refunds := array[money.promise(p, p.captured - p.amount, 'OVERPAID', gen_random_uuid())];
  end if;
  if f.rank >= money.rank('REFUNDED') then perform money.fold_returns(p_payment, p_actor, p_request); end if;
  if v_refunds is not null or f.rank >= money.rank('REFUNDED') then
    select * into p from money.payment where payment_id = p_payment;
    select array_agg(refund_id) into v_refunds from money.refund where payment_id = p_payment and state = 'PENDING';
  end if;
  v_body := money.shown(p, v_reference);
  -- Whoever asked has an answer; only what will be said again is kept, the rest is judged anew.
  foreach v_key in array coalesce(v_keys, '{}') loop
    perform money.finish(v_key, case when p.state in ('CONFIRMED', 'INITIATED') then v_body end);
  end loop;
  return jsonb_build_object('status', p.state, 'body', v_body, 'partner', p.partner_id, 'refunds', coalesce(to_jsonb(v_refunds), '[]'));
end $$;

-- The provider has prepared a charge (its first facts, none of them about money): nothing of the booking changes, so it is not locked.
-- Answers as settle does.
create function money.prepared(p_payment uuid, p_facts jsonb, p_reference text) returns jsonb language plpgsql volatile as $$
declare p money.payment; v_body jsonb; v_key uuid;
begin
  perform set_config('tp.partner', '*', true);
  select key into v_key from money.payment where payment_id = p_payment;
  update money.payment set key = null, provider_ref = coalesce(provider_ref, p_facts->0->>'ref') where payment_id = p_payment returning * into p;
  if not found then return '{"status":"NOT_FOUND"}'; end if;
  insert into money.fact (provider, event_id, payment_id, partner_id, reference, provider_ref, kind, amount, currency, part, reason, at)
    select p.provider, event, p_payment, p.partner_id, p_payment::text, ref, kind, amount, currency, part, reason, at
    from jsonb_to_recordset(p_facts) as x(event text, ref text, kind text, amount bigint, currency text, part text, reason text, at timestamptz)
    on conflict on constraint fact_once do nothing;
  v_body := money.shown(p, p_reference);
  perform money.finish(v_key, case when p.state in ('CONFIRMED', 'INITIATED') then v_body end);
  return jsonb_build_object('status', p.state, 'body', v_body, 'partner', p.partner_id, 'refunds', '[]'::jsonb);
end $$;

-- Refunds and chargebacks that a provider told of: ours are done, one that nobody here asked for is taken into the books as it is.
create function money.fold_returns(p_payment uuid, p_actor text, p_request text) returns void
language plpgsql volatile as $$
declare p money.payment; x record; v_refund uuid; v_charged_back bigint;
begin
  for x in select distinct on (part) part, amount from money.fact where payment_id = p_payment and kind = 'REFUNDED' and part is not null
      and currency = (select currency from money.payment where payment_id = p_payment) order by part, event_id loop
    select * into p from money.payment where payment_id = p_payment;
    select refund_id into v_refund from money.refund where payment_id = p_payment and refund_id::text = x.part;
    if v_refund is null and x.part is not null then
      v_refund := md5('refund:' || p_payment || ':' || x.part)::uuid;
      if not exists (select from money.refund where refund_id = v_refund) and p.captured - p.refunded >= x.amount and x.amount > 0 then
        perform money.promise(p, x.amount, 'BY_PROVIDER', v_refund, 'RUNNING');
      end if;
    end if;
    perform money.refund_done(v_refund, 'PROVIDER:' || p.provider, p_actor, p_request);
  end loop;
  select * into p from money.payment where payment_id = p_payment;
  select coalesce(sum(amount), 0) into v_charged_back
    from (select distinct on (part) amount from money.fact where payment_id = p_payment and kind = 'CHARGED_BACK' and currency = p.currency
      order by part, event_id) c;
  if least(v_charged_back, p.captured) > p.charged_back then perform money.charge_back(p, v_charged_back, p_actor, p_request); end if;
end $$;

-- Facts of a payment as they came by webhook. Unknown payment: kept for the reconciler. Answers how many were new.
create function money.hear(p_provider text, p_reference text, p_facts jsonb) returns int language plpgsql volatile as $$
declare v_partner text; v_payment uuid; n int;
begin
  perform set_config('tp.partner', '*', true);
  select payment_id, partner_id into v_payment, v_partner from money.payment where payment_id::text = p_reference and provider = p_provider;
  insert into money.fact (provider, event_id, payment_id, partner_id, reference, provider_ref, kind, amount, currency, part, reason, at)
    select p_provider, event, v_payment, coalesce(v_partner, '-'), p_reference, ref, kind, amount, currency, part, reason, at
    from jsonb_to_recordset(p_facts) as x(event text, ref text, kind text, amount bigint, currency text, part text, reason text, at timestamptz)
    on conflict on constraint fact_once do nothing;
  get diagnostics n = row_count;
  return n;
end $$;

-- Facts that came before their payment was known, now joined to it. Answers the payments, to be settled.
create function money.attach() returns uuid[] language plpgsql volatile as $$
declare v_ids uuid[]; f record;
begin
  perform set_config('tp.partner', '*', true);
  for f in select u.provider, u.event_id, p.payment_id, p.partner_id from (    -- few and far between: a probe for each, never a join of tables
      select provider, event_id, reference from money.fact
      where payment_id is null and received_at > clock_timestamp() - interval '30 days' offset 0) u,
      lateral (select payment_id, partner_id from money.payment where payment_id = case
        when u.reference ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then u.reference::uuid end and provider = u.provider offset 0) p loop
    update money.fact set payment_id = f.payment_id, partner_id = f.partner_id where provider = f.provider and event_id = f.event_id;
    if not f.payment_id = any(coalesce(v_ids, '{}')) then v_ids := v_ids || f.payment_id; end if;
  end loop;
  return v_ids;
end $$;

-- ------------------------------------------------------------------------------------------------ other seats, refunds, cash

-- The customer agrees to other seats: p_seats [{"booking", "seats": [..]}] for the rows of the booking, as many as they had. Answers as
-- settle does; a seat that is gone undoes everything (TP409).
create function money.accept_seats(p_key uuid, p_print bytea, p_payment uuid, p_who jsonb, p_seats jsonb, p_actor text, p_request text)
returns jsonb language plpgsql volatile as $$
declare v_answer jsonb; v_lead uuid; v_ids uuid[]; v_reference text; p money.payment; x record; v_body jsonb;
begin
  perform set_config('tp.partner', '*', true);
  v_answer := booking.answered(p_key, p_print);
  if v_answer is not null then return v_answer; end if;
  select lead_id into v_lead from money.payment where payment_id = p_payment;
  if v_lead is null or not money.may_open(v_lead, p_who) then return '{"status":"REFUSED","code":"NOT_FOUND"}'; end if;
  select array_agg(booking_id), min(reference) into v_ids, v_reference from booking.locked(v_lead);
  select * into p from money.payment where payment_id = p_payment for update;
  if p.state <> 'OFFER_OTHER_SEATS' or p.deadline_at <= clock_timestamp() or p.refunded + p.charged_back > 0 then
    return jsonb_build_object('status', 'REFUSED', 'code', 'NOTHING_OFFERED', 'state', p.state); end if;
  for x in select b.booking_id, b.seats as old, array(select e::int2 from jsonb_array_elements_text(s->'seats') e order by e::int2) as new,
        i.map_version, i.status = 'SCHEDULED' and i.departs_at > clock_timestamp() as sells, m.seats as there
      from jsonb_array_elements(p_seats) s join booking.booking b on b.booking_id = (s->>'booking')::uuid and b.lead_id = v_lead
      join sale.trip_instance i using (trip_no) join sale.seat_map m on m.trip_no = i.trip_no and m.map_version = i.map_version
      order by b.booking_id loop
    if not x.sells or cardinality(x.new) <> cardinality(x.old) or not x.new <@ x.there
       or cardinality(x.new) <> (select count(distinct e) from unnest(x.new) e) then
      raise exception 'SEATS_DO_NOT_FIT' using errcode = 'TP422', detail = 'as many different seats as were booked, of those that are sold'; end if;
    update booking.passenger set seat = -seat where booking_id = x.booking_id;
    update booking.passenger q set seat = t.new from unnest(x.old, x.new) t(old, new) where q.booking_id = x.booking_id and q.seat = -t.old;
    update booking.ancillary a set seat = -t.new from unnest(x.old, x.new) t(old, new) where a.booking_id = x.booking_id and a.seat = t.old;
    update booking.ancillary set seat = -seat where booking_id = x.booking_id and seat < 0;
    update booking.booking set seats = x.new, map_version = x.map_version where booking_id = x.booking_id;
  end loop;
  if not sale.retake(p.lead_id) then raise exception 'PROMO_USED_UP' using errcode = 'TP409', detail = 'or what was bought beside the seats'; end if;
  if not money.reclaim(v_ids, p_request) then raise exception 'SEAT_TAKEN' using errcode = 'TP409', detail = 'one of these seats is taken'; end if;
  p := money.earn(p, v_ids, v_reference, p_actor, p_request);
  update money.payment set state = p.state, reason = p.reason, version = p.version, commission = p.commission, earned = p.earned,
    next_try_at = null where payment_id = p_payment;
  v_body := money.shown(p, v_reference);
  v_answer := jsonb_build_object('status', 'DONE', 'http', 200, 'body', v_body);
  perform booking.keep_answer(p_key, p.partner_id, p_print, v_answer);
  return v_answer;
end $$;

-- An offer of other seats is over, or was declined: the money goes back. Answers the refunds to be sent.
create function money.decline_seats(p_payment uuid, p_who jsonb, p_actor text, p_request text) returns jsonb language plpgsql volatile as $$
declare v_lead uuid; v_reference text; p money.payment; v_ids uuid[] := '{}';
begin
  perform set_config('tp.partner', '*', true);
  select lead_id into v_lead from money.payment where payment_id = p_payment;
  if v_lead is null or not money.may_open(v_lead, p_who) then return '{"status":"REFUSED","code":"NOT_FOUND"}'; end if;
  select min(reference) into v_reference from booking.locked(v_lead);
  update money.payment set state = 'REFUNDING', next_try_at = null where payment_id = p_payment and state = 'OFFER_OTHER_SEATS' returning * into p;
  if found and p.captured > p.refunded + p.charged_back then
    v_ids := array[money.promise(p, p.captured - p.refunded - p.charged_back, 'SEATS_GONE', gen_random_uuid())];
    insert into office.audit (partner_id, actor, request_id, action, entity_kind, entity_id, diff) values (p.partner_id, p_actor, p_request, 'payment.REFUND_PLANNED',
      'payment', p_payment, jsonb_build_object('amount', p.captured, 'reason', 'SEATS_GONE', 'refundId', v_ids[1]));
  end if;
  select * into p from money.payment where payment_id = p_payment;
  return jsonb_build_object('status', p.state, 'body', money.shown(p, v_reference), 'refunds', v_ids);
end $$;

-- POST /payments/refund, its first transaction: one refund of one payment.
create function money.ask_refund(p_key uuid, p_print bytea, p_run interval, p_payment uuid, p_reference text, p_refund uuid, p_amount bigint,
  p_currency text, p_reason text, p_who jsonb, p_actor text, p_request text) returns jsonb language plpgsql volatile as $$
declare v_answer jsonb; v_lead uuid; p money.payment; r money.refund;
begin
  perform set_config('tp.partner', '*', true);
  v_answer := money.answered(p_key, p_print, p_run);
  if v_answer->>'status' = 'ABANDONED' then return jsonb_build_object('status', 'BEGUN', 'refund', v_answer->>'payment'); end if;
  if v_answer is not null then return v_answer; end if;
  if p_payment is not null then select lead_id into v_lead from money.payment where payment_id = p_payment;
  else select lead_id into v_lead from booking.reference where reference = p_reference; end if;
  if v_lead is null or not money.may_open(v_lead, p_who) then return '{"status":"REFUSED","code":"NOT_FOUND"}'; end if;
  perform booking.locked(v_lead);
  select * into p from money.payment where lead_id = v_lead and (p_payment is null or payment_id = p_payment)
    order by captured - refunded - charged_back >= p_amount desc, made_at desc, payment_id limit 1 for update;
  if p.payment_id is null then return '{"status":"REFUSED","code":"NOT_FOUND"}'; end if;
  if p.currency <> p_currency then return jsonb_build_object('status', 'REFUSED', 'code', 'WRONG_CURRENCY', 'currency', p.currency); end if;
  if p_amount > p.captured - p.refunded - p.charged_back then
    return jsonb_build_object('status', 'REFUSED', 'code', 'REFUND_TOO_MUCH', 'left', greatest(p.captured - p.refunded - p.charged_back, 0)); end if;
  perform money.promise(p, p_amount, p_reason, p_refund);
  update money.refund set key = p_key where refund_id = p_refund returning * into r;
  insert into office.audit (partner_id, actor, request_id, action, entity_kind, entity_id, diff) values (p.partner_id, p_actor, p_request, 'payment.REFUND_PLANNED',
    'payment', p.payment_id, jsonb_build_object('amount', p_amount, 'reason', p_reason, 'refundId', p_refund));
  perform money.running(p_key, p.partner_id, p_print, p_run, 201, p_refund);
  if r.state = 'AT_COUNTER' then perform money.finish(p_key, money.shown_refund(r)); end if;
  return jsonb_build_object('status', 'BEGUN', 'refund', p_refund);
end $$;

-- A refund is about to be asked for (again): what the provider has to know, or null: there is nothing to do now. Of two who want to send it
-- the second waits for p_run.
create function money.start_refund(p_refund uuid, p_run interval) returns jsonb language plpgsql volatile as $$
declare r money.refund; p money.payment;
begin
  perform set_config('tp.partner', '*', true);
  update money.refund set state = 'RUNNING', tries = tries + 1, next_try_at = clock_timestamp() + p_run where refund_id = p_refund
    and (state = 'PENDING' or (state = 'RUNNING' and next_try_at <= clock_timestamp())) returning * into r;
  if not found then return null; end if;
  select * into p from money.payment where payment_id = r.payment_id;
  return jsonb_build_object('refund', r.refund_id, 'payment', p.payment_id, 'provider', p.provider, 'ref', p.provider_ref, 'amount', r.amount,
    'currency', r.currency, 'tries', r.tries, 'scenario', p.scenario);
end $$;

-- A try that came to nothing: again in p_wait, or (null) never, and people have to look.
create function money.refund_failed(p_refund uuid, p_wait interval, p_fault text, p_covered bool, p_actor text, p_request text) returns void
language plpgsql volatile as $$
declare r money.refund; v_lead uuid;
begin
  perform set_config('tp.partner', '*', true);
  select lead_id into v_lead from money.refund where refund_id = p_refund;
  perform booking.locked(v_lead);
  perform from money.payment where lead_id = v_lead order by payment_id for update;
  if p_covered then
    perform money.supersede(p_refund);
    perform money.close_booking(v_lead, p_actor, p_request);
    return;
  end if;
  update money.refund set state = case when p_wait is null then 'FAILED' else 'PENDING' end, next_try_at = clock_timestamp() + p_wait,
    fault = p_fault where refund_id = p_refund and state = 'RUNNING' returning * into r;
  if found then
    insert into office.audit (partner_id, actor, request_id, action, entity_kind, entity_id, diff) values (r.partner_id, p_actor, p_request, 'payment.REFUND_' ||
      case r.state when 'FAILED' then 'FAILED' else 'PUT_OFF' end, 'payment', r.payment_id, jsonb_build_object('refundId', r.refund_id, 'fault', p_fault));
    if r.state = 'FAILED' then
      perform office.record(r.partner_id, p_actor, p_request, 'system', 'ALERT', p_refund, 1, jsonb_build_object('alert', 'REFUND_FAILED',
        'refundId', p_refund, 'paymentId', r.payment_id, 'amount', r.amount, 'currency', r.currency, 'fault', p_fault)); end if;
    perform money.finish(r.key, money.shown_refund(r));
    update money.refund set key = null where refund_id = p_refund;
  end if;
end $$;

create function money.shown_refund(r money.refund) returns jsonb language plpgsql volatile as $$
begin
  return jsonb_build_object('id', r.refund_id, 'paymentId', r.payment_id, 'status', case r.state when 'RUNNING' then 'PENDING' else r.state end,
    'amount', jsonb_build_object('amount', r.amount, 'currency', r.currency), 'reason', r.reason);
end $$;

-- A sale for cash: the booking's rows are locked, the caller moves them and issues the tickets. Answers what was taken.
create function money.take_cash(p_payment uuid, p_lead uuid, p_drawer text, p_actor text, p_request text) returns bigint
language plpgsql volatile as $$
declare p money.payment; v_due bigint := money.due(p_lead); v_partner text; v_currency text; v_reference text;
begin
  select min(partner_id), min(currency), min(reference) into v_partner, v_currency, v_reference from booking.booking where lead_id = p_lead;
  if v_due <= 0 then return 0; end if;
  insert into money.payment (payment_id, lead_id, partner_id, provider, provider_ref, amount, currency, captured, state, actor, deadline_at)
    values (p_payment, p_lead, v_partner, 'CASH', p_drawer, v_due, v_currency, v_due, 'INITIATED', p_actor, clock_timestamp()) returning * into p;
  perform money.post(v_partner, v_currency, 'CASH_TAKEN', p_payment, p_lead, array['CASH:' || p_drawer, 'CUSTOMER'], array[v_due, -v_due]);
  p := money.earn(p, null, v_reference, p_actor, p_request);
  update money.payment set state = p.state, commission = p.commission, earned = true, version = p.version where payment_id = p_payment;
  return v_due;
end $$;

-- A refund that waits at the counter is paid out of a drawer. Answers how much; 0: it was already.
create function money.give_cash(p_refund uuid, p_drawer text, p_actor text, p_request text) returns bigint language plpgsql volatile as $$
declare v_lead uuid; v_amount bigint;
begin
  select lead_id into v_lead from money.refund where refund_id = p_refund;
  perform booking.locked(v_lead);
  perform from money.payment where lead_id = v_lead order by payment_id for update;
  select amount into v_amount from money.refund where refund_id = p_refund and state = 'AT_COUNTER' for update;
  if not found then return 0; end if;
  perform money.refund_done(p_refund, 'CASH:' || p_drawer, p_actor, p_request);
  return v_amount;
end $$;

-- What should be in a drawer.
create function money.drawer(p_partner text, p_drawer text, p_currency text) returns bigint language plpgsql volatile as $$
begin
  return (select coalesce(sum(debit - credit), 0) from money.ledger
    where partner_id = p_partner and account = 'CASH:' || p_drawer and currency = p_currency);
end $$;

-- The operator puts its own money into a drawer, to begin with.
create function money.open_drawer(p_partner text, p_drawer text, p_currency text, p_float bigint, p_request text) returns void
language plpgsql volatile as $$
begin
  perform pg_advisory_xact_lock(hashtextextended('drawer:' || p_partner || ':' || p_drawer, 5));
  perform money.post(p_partner, p_currency, 'DRAWER_OPENED', null, null, array['CASH:' || p_drawer, 'PARTNER'], array[p_float, -p_float]);
end $$;

-- A drawer is counted and emptied: the operator has the money, which is no longer owed to it; what is missing or too much is booked.
create function money.count_drawer(p_partner text, p_drawer text, p_currency text, p_counted bigint, p_request text) returns jsonb
language plpgsql volatile as $$
declare v_expected bigint;
begin
  perform pg_advisory_xact_lock(hashtextextended('drawer:' || p_partner || ':' || p_drawer, 5));
  v_expected := money.drawer(p_partner, p_drawer, p_currency);
  perform money.post(p_partner, p_currency, 'DRAWER_COUNTED', null, null, array['PARTNER', 'CASH_DIFFERENCE', 'CASH:' || p_drawer],
    array[p_counted, v_expected - p_counted, -v_expected]);
  return jsonb_build_object('expected', v_expected, 'counted', p_counted, 'difference', p_counted - v_expected);
end $$;

-- ------------------------------------------------------------------------------------------------ settlements, and what an auditor asks

-- The balance of a partner's account (what we owe it) before an instant.
create function money.balance(p_partner text, p_account text, p_currency text, p_before timestamptz) returns bigint
language plpgsql volatile as $$
begin
  return (select coalesce(sum(credit - debit), 0) from money.ledger
    where partner_id = p_partner and account = p_account and currency = p_currency and at < p_before);
end $$;

-- Everything up to p_to is paid out: one posting from PARTNER to BANK. Answers the settlement; one that is closed already says so again.
create function money.close_period(p_settlement uuid, p_partner text, p_currency text, p_to timestamptz, p_actor text, p_request text)
returns jsonb language plpgsql volatile as $$
declare s money.settlement; v_from timestamptz; v_owed bigint; v_txn bigint;
begin
  perform pg_advisory_xact_lock(hashtextextended('settlement:' || p_partner || ':' || p_currency, 5));
  select * into s from money.settlement where partner_id = p_partner and currency = p_currency and to_at = p_to;
  if not found then
    select max(to_at) into v_from from money.settlement where partner_id = p_partner and currency = p_currency;
    if v_from is null then select min(at) into v_from from money.ledger where partner_id = p_partner and account = 'PARTNER' and currency = p_currency; end if;
    if v_from is null or v_from >= p_to then return '{"status":"REFUSED","code":"NOTHING_TO_SETTLE"}'; end if;
    v_owed := money.balance(p_partner, 'PARTNER', p_currency, p_to)      -- and what was paid out since for what came before
      + coalesce((select sum(credit - debit) from money.ledger where partner_id = p_partner and account = 'PARTNER' and currency = p_currency
        and kind = 'PAYOUT' and at >= p_to), 0);
    if v_owed > 0 then
      v_txn := money.post(p_partner, p_currency, 'PAYOUT', null, null, array['PARTNER', 'BANK'], array[v_owed, -v_owed]);
    end if;
    insert into money.settlement (settlement_id, partner_id, currency, from_at, to_at, amount, carried, txn, closed_by)
      values (p_settlement, p_partner, p_currency, v_from, p_to, greatest(v_owed, 0), least(v_owed, 0), v_txn, p_actor) returning * into s;
    perform office.record(p_partner, p_actor, p_request, 'partner', 'SETTLED', p_settlement, 1, jsonb_build_object('from', s.from_at, 'to', s.to_at,
      'amount', s.amount, 'carried', s.carried, 'currency', p_currency), null);
  end if;
  return jsonb_build_object('status', 'CLOSED', 'id', s.settlement_id, 'partnerId', s.partner_id, 'from', s.from_at, 'to', s.to_at,
    'amount', jsonb_build_object('amount', s.amount, 'currency', s.currency),
    'carried', jsonb_build_object('amount', s.carried, 'currency', s.currency), 'closedAt', s.closed_at);
end $$;

-- Every invariant of money that does not hold, of any tenant. No rows: all is sound.
create function money.unsound() returns table (rule text, entity text, said text) language plpgsql volatile as $$
begin
  perform set_config('tp.partner', '*', true);
  return query select 'LEDGER_UNBALANCED', 'txn:' || l.txn, format('%s %s', l.currency, sum(debit) - sum(credit))
    from money.ledger l group by l.txn, l.currency having sum(debit) <> sum(credit);
  return query select 'CAPTURED_IS_NOT_THE_LEDGERS', 'payment:' || p.payment_id, format('%s <> %s', p.captured, coalesce(l.got, 0))
    from money.payment p left join (select payment_id, sum(debit) as got from money.ledger where kind in ('CAPTURED', 'CASH_TAKEN')
      group by payment_id) l using (payment_id) where p.captured <> coalesce(l.got, 0);
  return query select 'REFUNDED_IS_NOT_THE_REFUNDS', 'payment:' || p.payment_id, format('%s <> %s', p.refunded, coalesce(r.back, 0))
    from money.payment p left join lateral (select sum(amount) as back from money.refund where payment_id = p.payment_id
      and state <> 'SUPERSEDED') r on true where p.refunded <> coalesce(r.back, 0);
  return query select 'PAID_AND_NO_SEAT', 'payment:' || p.payment_id, b.state
    from money.payment p join booking.booking b on b.lead_id = p.lead_id
    where p.state = 'CONFIRMED' and p.captured > p.refunded + p.charged_back and b.state in ('HELD', 'PENDING_PAYMENT', 'EXPIRED', 'RELEASED');
  return query select 'CONFIRMED_AND_NOT_PAID', 'booking:' || b.lead_id, max(b.total)::text
    from booking.booking b where b.state in ('CONFIRMED', 'CHECKED_IN', 'BOARDED') and b.total > 0
      and not exists (select from money.payment p where p.lead_id = b.lead_id and p.earned) group by b.lead_id;
end $$;

-- ------------------------------------------------------------------------------------------------ the simulated providers' own memory

-- Nothing of ours refers to it and it refers to nothing of ours: a provider remembers what it did whatever becomes of our worker.
create schema simulator;

create table simulator.charge (
  provider text not null,
  key text not null,                         -- ours: asking again with it does nothing again
  body jsonb not null,                       -- engine/booking/providers.py reads it
  version int not null,
  primary key (provider, key)
);

-- Webhooks that are to be posted.
create table simulator.delivery (
  delivery_id bigint generated always as identity primary key,
  provider text not null,
  due_at_ms bigint not null,                 -- by the clock of whoever runs the simulator
  body text not null,
  tries int not null default 0
);
create index delivery_due on simulator.delivery (due_at_ms, delivery_id);
