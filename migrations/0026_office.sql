-- The office: what the relay of the outbox keeps (dead letters, what is held back behind them), the inbox of consumers, and the sweeps.

-- Rows behind a dead letter of their aggregate are parked: they leave the index that the relay reads, so that a poisoned aggregate costs
-- nothing while it waits for somebody. Rows enter the third index only when they are delivered: the hold does not pay for retention.
alter table office.outbox add column parked bool not null default false;
drop index office.outbox_waiting;
create index outbox_waiting on office.outbox (part, at) where delivered_at is null and not parked;
create index outbox_delivered on office.outbox (delivered_at) where delivered_at is not null;
-- A queue: every row is updated once and leaves dead index entries behind.
alter table office.outbox set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

-- An event that could not be delivered. HELD: it holds back the later events of its aggregate. REPLAYED: somebody had it tried again.
-- DELIVERED: that worked. One row for an event, however often it dies.
create table office.dead_letter (
  dead_letter_id uuid primary key,
  partner_id text not null,
  part int2 not null,
  topic text not null,
  aggregate uuid not null,
  version int not null,
  kind text not null,
  sink text not null,                       -- which of the relay's sinks refused it
  attempts int not null,                    -- over all its lives
  error text not null,
  state text not null default 'HELD' constraint dead_letter_state check (state in ('HELD', 'REPLAYED', 'DELIVERED')),
  died_at timestamptz not null default clock_timestamp(),
  replays int not null default 0,
  replayed_at timestamptz,
  replayed_by text,
  constraint dead_letter_event unique (part, topic, aggregate, version)
);
create index dead_letter_partner on office.dead_letter (partner_id, dead_letter_id);

-- What a consumer has done: the row is written in the transaction of its effect, so an event that comes twice has one effect.
create table office.inbox (
  consumer text not null,
  event_id text not null,
  at timestamptz not null default clock_timestamp(),
  primary key (consumer, event_id)
);
create index inbox_at on office.inbox (at);

select office.fence('office.dead_letter');

-- ------------------------------------------------------------------------------------------------ the relay

-- Events of one partition that wait to be said: of at most p_limit rows the whole chains of their aggregates in order of version, all in
-- order of `at`. A commit that comes late is found like any other: there is no cursor. `held`: a dead letter stands before it. For all
-- tenants; one round trip, for it is asked five times a second where nothing happens.
create function office.waiting(p_part int2, p_limit int) returns table (topic text, aggregate uuid, version int, partner_id text, kind text,
  body jsonb, at timestamptz, held bool) language plpgsql volatile as $$
begin
  perform set_config('tp.partner', '*', true);
  return query
    select o.topic, o.aggregate, o.version, o.partner_id, o.kind, o.body, o.at, exists (select from office.dead_letter d
        where d.part = p_part and d.topic = o.topic and d.aggregate = o.aggregate and d.state = 'HELD')
    from (select distinct n.topic, n.aggregate from (select w.topic, w.aggregate from office.outbox w
            where w.part = p_part and w.delivered_at is null and not w.parked order by w.at limit p_limit) n offset 0) c,
      lateral (select * from office.outbox w
        where w.part = p_part and w.topic = c.topic and w.aggregate = c.aggregate and w.delivered_at is null
        order by w.version limit 100 offset 0) o
    order by max(o.at) over (partition by o.topic, o.aggregate order by o.version), o.version;
end $$;

-- Marks events as delivered, for all tenants; answers how many were not yet.
create function office.delivered(p_part int2, p_topics text[], p_aggregates uuid[], p_versions int[]) returns int
language plpgsql volatile as $$
declare n int;
begin
  perform set_config('tp.partner', '*', true);
  update office.outbox o set delivered_at = clock_timestamp()
    from unnest(p_topics, p_aggregates, p_versions) d(topic, aggregate, version)
    where o.part = p_part and o.topic = d.topic and o.aggregate = d.aggregate and o.version = d.version and o.delivered_at is null;
  get diagnostics n = row_count;
  if exists (select from office.dead_letter where part = p_part and state = 'REPLAYED') then
    update office.dead_letter o set state = 'DELIVERED'
      from unnest(p_topics, p_aggregates, p_versions) d(topic, aggregate, version)
      where o.part = p_part and o.topic = d.topic and o.aggregate = d.aggregate and o.version = d.version and o.state = 'REPLAYED';
  end if;
  return n;
end $$;

-- Parks what waits behind a dead letter. The dead letter's lock decides between us and a replay: either we see that it is no longer held,
-- or the replay waits and then frees what we parked.
create function office.park(p_part int2, p_topic text, p_aggregate uuid) returns void language plpgsql volatile as $$
begin
  perform from office.dead_letter where part = p_part and topic = p_topic and aggregate = p_aggregate and state = 'HELD' for update;
  if not found then return; end if;
  update office.outbox set parked = true
    where part = p_part and topic = p_topic and aggregate = p_aggregate and delivered_at is null and not parked;
end $$;

-- An event becomes a dead letter and holds back its aggregate; an alert goes out (not for an alert that died). Nothing happens where the
-- event has been delivered meanwhile.
create function office.bury(p_id uuid, p_part int2, p_topic text, p_aggregate uuid, p_version int, p_sink text, p_attempts int, p_error text,
  p_alert uuid, p_request text) returns bool language plpgsql volatile as $$
declare v_partner text; v_kind text;
begin
  select partner_id, kind into v_partner, v_kind from office.outbox
    where part = p_part and topic = p_topic and aggregate = p_aggregate and version = p_version and delivered_at is null for update;
  if not found then return false; end if;
  insert into office.dead_letter as d (dead_letter_id, partner_id, part, topic, aggregate, version, kind, sink, attempts, error)
    values (p_id, v_partner, p_part, p_topic, p_aggregate, p_version, v_kind, p_sink, p_attempts, p_error)
    on conflict on constraint dead_letter_event do update
      set state = 'HELD', sink = excluded.sink, attempts = d.attempts + excluded.attempts, error = excluded.error,
        died_at = excluded.died_at;
  perform office.park(p_part, p_topic, p_aggregate);
  if p_topic <> 'system' then
    perform office.record(v_partner, 'system', p_request, 'system', 'ALERT', p_alert, 1,
      jsonb_build_object('alert', 'EVENT_DEAD', 'eventId', p_topic || ':' || p_aggregate || ':' || p_version, 'error', p_error));
  end if;
  return true;
end $$;

-- Has a dead letter tried again, with everything behind it; audited. Answers its state before, or null: not there for this tenant.
create function office.replay(p_id uuid, p_actor text, p_request text) returns text language plpgsql volatile as $$
declare d record;
begin
  select * into d from office.dead_letter where dead_letter_id = p_id for update;
  if not found then return null; end if;
  if d.state <> 'HELD' then return d.state; end if;
  update office.dead_letter set state = 'REPLAYED', replays = replays + 1, replayed_at = clock_timestamp(), replayed_by = p_actor
    where dead_letter_id = p_id;
  update office.outbox set parked = false
    where part = d.part and topic = d.topic and aggregate = d.aggregate and delivered_at is null and parked;
  insert into office.audit (partner_id, actor, request_id, action, entity_kind, entity_id, diff)
    values (d.partner_id, p_actor, p_request, 'dead_letter.REPLAYED', 'dead_letter', p_id,
      jsonb_build_object('event', d.topic || ':' || d.aggregate || ':' || d.version, 'replays', d.replays + 1));
  return d.state;
end $$;

-- ------------------------------------------------------------------------------------------------ reading the audit by time

-- An audit id from which on everything was written at `p_at` or later, give or take a minute: ids and times rise together, so a search by
-- halves finds it in some thirty probes, and the hold does not pay for an index by time. Null: nothing is that young.
create function office.audit_near(p_at timestamptz) returns bigint language plpgsql volatile as $$
declare v_low bigint; v_high bigint; v_middle bigint; v_found record; v_partner text := current_setting('tp.partner', true);
begin
  perform set_config('tp.partner', '*', true);
  select min(audit_id), max(audit_id) + 1 into v_low, v_high from office.audit;
  while v_low < v_high loop
    v_middle := v_low + (v_high - v_low) / 2;
    select audit_id, at into v_found from office.audit where audit_id >= v_middle order by audit_id limit 1;
    if not found or v_found.at >= p_at - interval '1 minute' then v_high := v_middle; else v_low := v_found.audit_id + 1; end if;
  end loop;
  perform set_config('tp.partner', coalesce(v_partner, ''), true);
  return v_low;
end $$;
