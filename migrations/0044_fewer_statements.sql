-- Booking, paying and issuing in fewer statements: each costs PostgreSQL 30-60 us before it has read or written anything (its executor is
-- set up and taken down), and a booking from hold to ticket was about ninety of them. What is written, refused and answered is what
-- migrations 0021, 0024 and 0025 say, and so is the order of locks; only booking.book and money.settle write a row once that they wrote twice.

-- An SQL function in a CHECK is parsed again for every statement that writes a row. The same words, said plainly.
alter table money.fact drop constraint fact_kind, add constraint fact_kind check
  (kind in ('CREATED', 'PENDING', 'AUTHORIZED', 'FAILED', 'CAPTURED', 'REFUNDED', 'CHARGED_BACK')) not valid;  -- every row passed it before

create or replace function office.record(p_partner text, p_actor text, p_request text, p_topic text, p_kind text, p_aggregate uuid,
  p_version int, p_body jsonb, p_diff jsonb default null) returns void language plpgsql volatile as $$
begin
  with a as (
    insert into office.audit (partner_id, actor, request_id, action, entity_kind, entity_id, diff)
    values (p_partner, p_actor, p_request, p_topic || '.' || p_kind, p_topic, p_aggregate, p_diff))
  insert into office.outbox (part, topic, aggregate, version, partner_id, kind, body)
    values (uuid_hash(p_aggregate) & 3, p_topic, p_aggregate, p_version, p_partner, p_kind, p_body);
end $$;

-- One move of the table of moves, as in 0021: the rows, their audit rows and their events are one statement.
create or replace function booking.move(p_ids uuid[], p_to text, p_actor text, p_request text, p_kind text default null,
  p_more jsonb default '{}') returns void language plpgsql volatile as $$
declare wrong record; v_moved uuid[]; n int; wanted int; v_kind constant text := coalesce(p_kind, p_to);
begin
  with b as (   -- the edge as a subselect: a probe for each row, whatever the tables were when the plan was made
    update booking.booking k set state = p_to, version = version + 1, paying = false
      where booking_id = any(p_ids) and (select true from booking.edge e where e.from_state = k.state and e.to_state = p_to)
      returning booking_id, partner_id, trip_no, map_version, seats, legs, state, version, reference, expires_at),
  a as (
    insert into office.audit (partner_id, actor, request_id, action, entity_kind, entity_id, diff)
    select partner_id, p_actor, p_request, 'booking.' || v_kind, 'booking', booking_id,
      jsonb_build_object('state', state, 'version', version) || p_more from b),
  o as (
    insert into office.outbox (part, topic, aggregate, version, partner_id, kind, body)
    select hashint8(trip_no) & 3, 'booking', booking_id, version, partner_id, v_kind,
      jsonb_build_object('tripNo', trip_no, 'map', map_version, 'seats', seats, 'from', lower(legs), 'to', upper(legs), 'state', state,
        'ref', reference, 'until', case when state in ('HELD', 'PENDING_PAYMENT') then expires_at end) || p_more from b)
  select array_agg(booking_id), sum(cardinality(seats)) into v_moved, wanted from b;
  if cardinality(p_ids) > coalesce(cardinality(v_moved), 0) then
    select b.booking_id, b.state into wrong from booking.booking b
      where b.booking_id = any(p_ids) and not b.booking_id = any(coalesce(v_moved, '{}')) limit 1;
    if found then raise exception 'WRONG_STATE' using errcode = 'TP422', detail = wrong.state, hint = wrong.booking_id::text; end if;
  end if;
  if p_to = 'CONFIRMED' then
    with c as (   -- naming "active" invites the GiST index
      update booking.seat_claim set state = 'SOLD' where booking_id = any(p_ids) and state = 'HELD' returning 1)
    select (select count(*) from c) + (select count(*) from booking.seat_claim where booking_id = any(p_ids) and state = 'SOLD') into n;
    if n <> wanted then raise exception 'CLAIMS_MISSING' using errcode = 'TP500', detail = p_ids::text; end if;
  elsif p_to in ('EXPIRED', 'RELEASED', 'CANCELLED', 'EXCHANGED', 'NO_SHOW', 'REFUNDED') then
    delete from booking.seat_claim where booking_id = any(p_ids) and state in ('HELD', 'SOLD');
  end if;
end $$;

-- The rows of a booking, locked, as in 0021.
create or replace function booking.locked(p_id uuid, p_alone bool default false) returns setof booking.booking language plpgsql volatile as $$
declare v_partner text; v_trips bigint[]; v_lead uuid;
begin
  perform set_config('tp.partner', '*', true);
  select max(partner_id), array_agg(distinct trip_no order by trip_no), (array_agg(lead_id))[1] into v_partner, v_trips, v_lead
    from booking.booking where lead_id = (select lead_id from booking.booking where booking_id = p_id);
  if v_partner is null then return; end if;
  perform set_config('tp.partner', v_partner, true);
  for i in 1 .. cardinality(v_trips) loop perform booking.lock_trip(v_trips[i], p_alone); end loop;
  return query select * from booking.booking where lead_id = v_lead order by booking_id for update;
end $$;

-- HELD -> PENDING_PAYMENT, as in 0021: the row of the booking is written once, with the move.
create or replace function booking.book(p_key uuid, p_print bytea, p_ids uuid[], p_reference text, p_passengers jsonb, p_contact jsonb,
  p_totals bigint[], p_extras jsonb, p_ttl interval, p_actor text, p_request text) returns jsonb language plpgsql volatile as $$
declare v_answer jsonb; v_partner text; v_trips bigint[]; b record; v_until timestamptz; v_found int; i int;
begin
  perform set_config('tp.partner', '*', true);
  v_answer := booking.answered(p_key, p_print);
  if v_answer is not null then return v_answer; end if;
  select min(partner_id), array_agg(distinct trip_no order by trip_no), count(*) into v_partner, v_trips, v_found
    from booking.booking where booking_id = any(p_ids);
  if v_found <> cardinality(p_ids) then return '{"status":"REFUSED","code":"HOLD_NOT_FOUND"}'; end if;
  perform set_config('tp.partner', v_partner, true);
  for i in 1 .. cardinality(v_trips) loop perform booking.lock_trip(v_trips[i]); end loop;
  -- Locked and read in one statement, begun after the trips are locked: what waited for a row reads what it has become.
  select count(*) as found, sum(cardinality(k.seats)) as seats, max(k.expires_at) as until,
      (array_agg(k.state) filter (where k.state <> 'HELD' or k.expires_at <= clock_timestamp()))[1] as wrong,
      bool_and(k.seats <@ array(select (p->>'seat')::int2 from jsonb_array_elements(p_passengers) p
        where (p->>'booking')::uuid = k.booking_id)) as named
    into b from (select booking_id, seats, expires_at, state from booking.booking where booking_id = any(p_ids)
      order by booking_id for update) k;
  if b.found <> cardinality(p_ids) then return '{"status":"REFUSED","code":"HOLD_NOT_FOUND"}'; end if;   -- the two are of two operators
  if b.wrong is not null then
    return case when b.wrong in ('EXPIRED', 'HELD') then '{"status":"REFUSED","code":"HOLD_EXPIRED"}'::jsonb
      else jsonb_build_object('status', 'REFUSED', 'code', 'HOLD_USED', 'state', b.wrong) end;
  end if;
  if b.seats <> jsonb_array_length(p_passengers) then return '{"status":"REFUSED","code":"INVALID"}'; end if;
  if not b.named then return '{"status":"REFUSED","code":"STALE_MAP"}'; end if;  -- a swap has given the hold other seats since it was read
  insert into booking.reference (reference, partner_id, lead_id, surnames)
    values (p_reference, v_partner, p_ids[1], array(select distinct p->>'folded' from jsonb_array_elements(p_passengers) p))
    on conflict do nothing;
  if not found then return '{"status":"REFUSED","code":"REFERENCE_TAKEN"}'; end if;
  v_until := greatest(b.until, clock_timestamp() + p_ttl);
  with p as materialized (
      select (p->>'booking')::uuid as booking_id, (p->>'seat')::int2 as seat, p->>'first_name' as first_name, p->>'last_name' as last_name,
        p->>'type' as type, (p->>'price')::bigint as price, p->'detail' as detail from jsonb_array_elements(p_passengers) p),
    w as (
      insert into booking.passenger (booking_id, seat, partner_id, first_name, last_name, type, price, detail)
      select booking_id, seat, v_partner, first_name, last_name, type, price, detail from p),
    k as (   -- every one of them is HELD: looked at above, under its lock
      update booking.booking k set lead_id = p_ids[1], reference = p_reference, contact = p_contact,
          total = p_totals[array_position(p_ids, k.booking_id)], expires_at = v_until, state = 'PENDING_PAYMENT', version = version + 1,
          prices = array(select p.price from p where p.booking_id = k.booking_id order by p.seat)
        where booking_id = any(p_ids)
        returning booking_id, trip_no, map_version, seats, legs, version),
    a as (
      insert into office.audit (partner_id, actor, request_id, action, entity_kind, entity_id, diff)
      select v_partner, p_actor, p_request, 'booking.CREATED', 'booking', booking_id,
        jsonb_build_object('state', 'PENDING_PAYMENT', 'version', version) from k)
  insert into office.outbox (part, topic, aggregate, version, partner_id, kind, body)
  select hashint8(trip_no) & 3, 'booking', booking_id, version, v_partner, 'CREATED',
    jsonb_build_object('tripNo', trip_no, 'map', map_version, 'seats', seats, 'from', lower(legs), 'to', upper(legs),
      'state', 'PENDING_PAYMENT', 'ref', p_reference, 'until', v_until) from k;
  if p_extras is not null then perform booking.take_extras(p_ids, p_extras, p_actor, p_request); end if;
  v_answer := jsonb_build_object('status', 'PENDING_PAYMENT', 'lead', p_ids[1], 'ref', p_reference, 'shown', booking.shown(p_reference, null));
  perform booking.keep_answer(p_key, v_partner, p_print, v_answer);
  return v_answer;
end $$;

-- A payment begins, as in 0024. p_run null: no provider is asked before the customer confirms, so this transaction is the whole request; it
-- answers {"status": "DONE", ...}, and nobody looks after the payment before its deadline.
create or replace function money.initiate(p_key uuid, p_print bytea, p_run interval, p_payment uuid, p_reference text, p_provider text,
  p_scenario text[], p_limit interval, p_most interval, p_who jsonb, p_actor text, p_request text) returns jsonb
language plpgsql volatile as $$
declare v_answer jsonb; v_lead uuid; b record; v_until timestamptz; p money.payment; v_kept jsonb;
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
      bool_or(paying) as paying, min(expires_at) as until, min(held_at) as held_at, min(currency) as currency,
      coalesce(sum(total), 0)::bigint as total,
      bool_or((p_who->>'all')::bool or partner_id = p_who->>'partner' or holder in (p_who->>'actor', p_who->>'guest')
        or booking_id = (p_who->>'opened')::uuid or lead_id = (p_who->>'opened')::uuid) as theirs
    into b from booking.locked(v_lead);
  if b.theirs is not true then return '{"status":"REFUSED","code":"NOT_FOUND"}'; end if;
  if b.paying then return '{"status":"REFUSED","code":"PAYMENT_IN_PROGRESS"}'; end if;
  if b.state = 'EXPIRED' or (b.pending and b.until <= clock_timestamp()) then return '{"status":"REFUSED","code":"HOLD_EXPIRED"}'; end if;
  if not b.pending then return jsonb_build_object('status', 'REFUSED', 'code', 'WRONG_STATE', 'state', b.state); end if;
  p.amount := b.total - (select coalesce(sum(captured - refunded - charged_back), 0) from money.payment where lead_id = v_lead)
    - coalesce((select amount from money.credit where lead_id = v_lead), 0);   -- money.due
  if p.amount < 0 then return '{"status":"REFUSED","code":"NOTHING_DUE"}'; end if;
  v_until := greatest(b.until, least(clock_timestamp() + p_limit, b.held_at + p_most + p_limit));
  p.payment_id := p_payment; p.state := 'INITIATED'; p.provider := p_provider; p.currency := b.currency; p.refunded := 0;
  if p_run is null then
    v_kept := jsonb_build_object('status', 'DONE', 'http', 201, 'body', money.shown(p, p_reference));
  else
    v_kept := jsonb_build_object('status', 'IN_PROGRESS', 'until', clock_timestamp() + p_run, 'http', 201, 'payment', p_payment);
    p.key := p_key;
  end if;
  with k as (update booking.booking set paying = true, expires_at = v_until where lead_id = v_lead),
  n as (
    insert into money.payment (payment_id, lead_id, partner_id, provider, amount, currency, state, scenario, actor, key, deadline_at, next_try_at)
    values (p_payment, v_lead, b.partner, p_provider, p.amount, b.currency, 'INITIATED', p_scenario, p_actor, p.key, v_until,
      coalesce(clock_timestamp() + p_run, v_until))),
  a as (
    insert into office.audit (partner_id, actor, request_id, action, entity_kind, entity_id, diff)
    values (b.partner, p_actor, p_request, 'payment.INITIATED', 'payment', p_payment, '{"state":"INITIATED"}')),
  i as (
    insert into office.idempotency (key, partner_id, fingerprint, answer, keep_until)
    select p_key, b.partner, p_print, v_kept, clock_timestamp() + interval '7 days' where p_key is not null)
  insert into office.outbox (part, topic, aggregate, version, partner_id, kind, body)
    values (uuid_hash(p_payment) & 3, 'payment', p_payment, 1, b.partner, 'INITIATED', jsonb_build_object('bookingId', v_lead,
      'ref', p_reference, 'provider', p_provider, 'amount', p.amount, 'currency', b.currency));
  if p_run is null then return v_kept; end if;
  return jsonb_build_object('status', 'BEGUN', 'payment', p_payment, 'provider', p_provider, 'amount', p.amount, 'currency', b.currency,
    'scenario', p_scenario, 'ref', p_reference);
end $$;

-- The money of a payment is about to be asked for, as in 0024. Where that is all that is said, the commit does not wait for the disk: nobody
-- has been answered, the payment itself is on disk (INITIATED), and a provider does nothing twice for one payment, so whoever asks again (the
-- reconciler, or the customer with the same key) goes on from there. What follows (money.settle) waits, and with it this.
create or replace function money.begin_confirm(p_key uuid, p_print bytea, p_run interval, p_payment uuid, p_who jsonb, p_actor text,
  p_request text) returns jsonb language plpgsql volatile as $$
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
  perform set_config('synchronous_commit', 'off', true);
  with u as (
    update money.payment set state = 'IN_PROGRESS', key = p_key, tries = 0,
        next_try_at = case when next_try_at > clock_timestamp() + 2 * p_run then clock_timestamp() + p_run else next_try_at end
      where payment_id = p_payment),
  i as (
    insert into office.idempotency (key, partner_id, fingerprint, answer, keep_until)
    select p_key, p.partner_id, p_print, jsonb_build_object('status', 'IN_PROGRESS', 'until', clock_timestamp() + p_run, 'http', 200,
      'payment', p_payment), clock_timestamp() + interval '7 days' where p_key is not null and v_answer is null)
  insert into office.audit (partner_id, actor, request_id, action, entity_kind, entity_id, diff)
    values (p.partner_id, p_actor, p_request, 'payment.IN_PROGRESS', 'payment', p_payment, '{"state":"IN_PROGRESS"}');
  return jsonb_build_object('status', 'BEGUN', 'payment', p_payment, 'provider', p.provider, 'amount', p.amount, 'currency', p.currency,
    'scenario', p.scenario, 'ref', v_reference);
end $$;

-- ------------------------------------------------------------------------------------------------ the sale and its tickets

-- Captured money becomes a sale: its posting, its commission, its booking confirmed, its tickets. p_from: the account that the money comes
-- from, posted with it in one statement; null: that it came stands in the ledger already. Answers the payment as it is to be stored.
create function money.sold(p money.payment, p_ids uuid[], p_reference text, p_actor text, p_request text, p_from text) returns money.payment
language plpgsql volatile as $$
declare v_came bigint := case when p_from is not null then nextval('money.txn') end; v_sale bigint := nextval('money.txn');
begin
  p.commission := money.share(p.captured, money.permille(p.partner_id), 1000);
  p.earned := true; p.state := 'CONFIRMED'; p.reason := null; p.next_try_at := null; p.version := p.version + 1;
  insert into money.ledger (txn, line, partner_id, currency, account, debit, credit, kind, payment_id, lead_id)
    select txn, line, p.partner_id, p.currency, account, greatest(amount, 0), greatest(-amount, 0), kind, p.payment_id, p.lead_id
    from (values (v_came, 1, 'CAPTURED', p_from, p.captured), (v_came, 2, 'CAPTURED', 'CUSTOMER', -p.captured),
      (v_sale, 1, 'SALE', 'CUSTOMER', p.captured), (v_sale, 2, 'SALE', 'PARTNER', p.commission - p.captured),
      (v_sale, 3, 'SALE', 'COMMISSION', -p.commission)) t(txn, line, kind, account, amount)
    where txn is not null and amount <> 0;
  if p_ids is not null then
    perform booking.move(p_ids, 'CONFIRMED', p_actor, p_request);
    perform ticket.issue(p_ids, p_actor, p_request);
    perform money.confirmed(p.lead_id, p_ids, p_actor, p_request);
  end if;
  perform office.record(p.partner_id, p_actor, p_request, 'payment', 'CONFIRMED', p.payment_id, p.version, jsonb_build_object('bookingId',
    p.lead_id, 'ref', p_reference, 'provider', p.provider, 'amount', p.captured, 'currency', p.currency), '{"state":"CONFIRMED"}');
  return p;
end $$;

-- Money that is here already becomes a sale.
create or replace function money.earn(p money.payment, p_ids uuid[], p_reference text, p_actor text, p_request text) returns money.payment
language plpgsql volatile as $$
begin
  return money.sold(p, p_ids, p_reference, p_actor, p_request, null);
end $$;

-- The second transaction of a payment, as in 0024: what came and what it became are posted together.
create or replace function money.settle(p_payment uuid, p_provider text, p_facts jsonb, p_give_up bool, p_offer interval, p_key uuid,
  p_actor text, p_request text) returns jsonb language plpgsql volatile as $$
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
    if not v_confirm then
      perform money.post(p.partner_id, p.currency, 'CAPTURED', p_payment, p.lead_id, array['PROVIDER:' || p.provider, 'CUSTOMER'],
        array[p.captured, -p.captured]);
    end if;
    if v_confirm then
      p := money.sold(p, b.ids, v_reference, p_actor, p_request, 'PROVIDER:' || p.provider);
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

-- A ticket for every passenger who has none in force, as in 0025: new tickets, their audit rows and their events are one statement.
create or replace function ticket.issue(p_ids uuid[], p_actor text, p_request text) returns int language plpgsql volatile as $$
declare wrong record; again record; v_key smallint; v_new int; v_more int; v_again uuid[] := '{}';
  v_now timestamptz := date_trunc('second', clock_timestamp());
begin
  select booking_id, state into wrong from booking.booking
    where booking_id = any(p_ids) and state not in ('CONFIRMED', 'CHECKED_IN', 'BOARDED') limit 1;
  if found then
    raise exception 'NOT_CONFIRMED' using errcode = 'TP422', detail = 'a ticket is issued for a booking that is paid for; this one is ' || wrong.state,
      hint = wrong.booking_id::text;
  end if;
  select max(key_id) into v_key from ticket.key where retired_at is null;
  -- A probe for each table and passenger (offset 0): a join, planned while these tables were empty, read them whole for every booking.
  with n as materialized (
      select b.booking_id, b.reference, p.seat, b.partner_id, b.trip_no, b.legs, date_trunc('second', i.arrives_at) + interval '1 day' as valid_to, t.old
      from unnest(p_ids) u,
        lateral (select booking_id, reference, partner_id, trip_no, legs from booking.booking where booking_id = u offset 0) b,
        lateral (select arrives_at from sale.trip_instance where trip_no = b.trip_no offset 0) i,
        lateral (select seat from booking.passenger where booking_id = b.booking_id and state <> 'CANCELLED' offset 0) p,
        lateral (select bool_or(state <> 'REVOKED') as valid, bool_or(version < 255) as old
          from ticket.ticket where booking_id = b.booking_id and seat = p.seat offset 0) t
      where t.valid is not true),
    made as (
      insert into ticket.ticket (booking_id, seat, printed_seat, partner_id, trip_no, legs, key_id, valid_from, valid_to)
      select booking_id, seat, seat, partner_id, trip_no, legs, v_key, v_now, valid_to from n where old is not true
      returning ticket_id, booking_id, seat, partner_id, trip_no, version, state, events, valid_from, valid_to),
    a as (
      insert into office.audit (partner_id, actor, request_id, action, entity_kind, entity_id, diff)
      select partner_id, p_actor, p_request, 'ticket.ISSUED', 'ticket', ticket_id, jsonb_build_object('state', state, 'version', version) from made),
    o as (
      insert into office.outbox (part, topic, aggregate, version, partner_id, kind, body)
      select uuid_hash(ticket_id) & 3, 'ticket', ticket_id, events, partner_id, 'ISSUED', jsonb_build_object('bookingId', booking_id,
        'ref', (select reference from n where n.booking_id = made.booking_id limit 1), 'tripNo', trip_no, 'seat', seat, 'version', version,
        'state', state, 'validFrom', valid_from, 'validTo', valid_to) from made)
    select (select count(*) from made), (select count(*) from n where old) into v_new, v_more;
  if v_more = 0 then return v_new; end if;
  -- A seat whose ticket was revoked gets the same ticket in its next version.
  for again in select p.seat, b.trip_no, b.legs, date_trunc('second', i.arrives_at) + interval '1 day' as valid_to, t.old
      from unnest(p_ids) u,
        lateral (select booking_id, trip_no, legs from booking.booking where booking_id = u offset 0) b,
        lateral (select arrives_at from sale.trip_instance where trip_no = b.trip_no offset 0) i,
        lateral (select seat from booking.passenger where booking_id = b.booking_id and state <> 'CANCELLED' offset 0) p,
        lateral (select bool_or(state <> 'REVOKED') as valid, (array_agg(ticket_id order by revoked_at desc) filter (where version < 255))[1] as old
          from ticket.ticket where booking_id = b.booking_id and seat = p.seat offset 0) t
      where t.valid is not true and t.old is not null loop
    update ticket.ticket set version = version + 1, events = events + 1, state = 'ISSUED', revoked_at = null, boarded_at = null,
        boarded_by = null, printed_seat = again.seat, trip_no = again.trip_no, legs = again.legs, key_id = v_key, valid_from = v_now, valid_to = again.valid_to
      where ticket_id = again.old;
    v_again := v_again || again.old;
  end loop;
  perform ticket.note(v_again, 'ISSUED', p_actor, p_request);
  return v_new + cardinality(v_again);
end $$;
