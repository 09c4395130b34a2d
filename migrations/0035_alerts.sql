-- Alerts that operators write for passengers; what was said of incidents, to managers and to passengers; who wants to hear of incidents.

-- Words as in GTFS-Realtime, message Alert (engine/live/alerts.py); texts by language, periods and selectors as the API writes them. Workers keep
-- them in memory and read what changed by `changed_xid`, as fleet.bus does.
create table network.alert (
  alert_id uuid primary key,
  partner_id text not null references public.partner,
  feed_id text not null references network.feed on delete cascade,
  cause text not null,
  effect text not null,
  level text not null constraint alert_level check (level in ('INFO', 'WARNING', 'SEVERE')),
  header jsonb not null,                    -- {"en": "..."}
  description jsonb not null,
  url text,
  periods jsonb not null,                   -- [{"from_ms", "to_ms"}]
  selectors jsonb not null,                 -- [{"route_id", "direction_id", "stop_id", "trip_id", "start_date"}]
  version int not null default 1,
  created_at timestamptz not null default clock_timestamp(),
  changed_at timestamptz not null default clock_timestamp(),
  retired_at timestamptz,
  changed_xid xid8 not null default pg_current_xact_id()
);
create index alert_partner on network.alert (partner_id, alert_id);
create index alert_changed on network.alert (changed_xid);
create trigger alert_change before update on network.alert for each row execute function fleet.stamp_change();

-- What was said of an incident: how often, and whether passengers heard of it. A row goes when the incident is long over.
create table office.incident_word (
  incident_id text primary key,
  partner_id text not null,
  trip_id text,                             -- public id of the trip instance
  seq int not null default 0,               -- of its events (topic incident)
  told int not null default 0,              -- of those its passengers heard of (topic notice)
  severity text not null default '',        -- as last said
  at timestamptz not null default clock_timestamp()
);
create index incident_word_trip on office.incident_word (trip_id) where told > 0;
create index incident_word_at on office.incident_word (at);

-- How far the reader of incidents has come; written in the transaction of what it wrote.
create table office.reader (
  name text primary key,
  cursor text not null,                     -- a Redis stream id, ms-seq
  at timestamptz not null default clock_timestamp()
);

-- Who hears of an operator's incidents on their own notifications.
create table office.follower (
  partner_id text not null references public.partner,
  subject text not null,
  severity text not null constraint follower_severity check (severity in ('MINOR', 'MAJOR', 'CRITICAL')),  -- and worse
  kinds text[] not null default '{}',       -- none: every kind
  changed_at timestamptz not null default clock_timestamp(),
  primary key (partner_id, subject)
);

select office.fence('network.alert'), office.fence('office.incident_word'), office.fence('office.follower');

-- One event for the outbox without an audit row: what a machine noticed is nobody's change.
create function office.say(p_partner text, p_topic text, p_kind text, p_aggregate uuid, p_version int, p_body jsonb) returns void
language plpgsql volatile as $$
begin
  insert into office.outbox (part, topic, aggregate, version, partner_id, kind, body)
    values (uuid_hash(p_aggregate) & 3, p_topic, p_aggregate, p_version, p_partner, p_kind, p_body);
end $$;
