-- Buses and the devices that speak for them. Nothing secret stands here: tokens as SHA-256, HMAC secrets are derived (engine/office/accounts.py).

create schema fleet;

-- Every worker keeps these rows in memory and reads, every 2 s, those of transactions that it could not see before: `changed_xid` is the
-- transaction, and a reader's mark is the oldest transaction that was still open when it read. A time could not do that: a long transaction
-- commits rows with an old one.
create function fleet.stamp_change() returns trigger language plpgsql as $$
begin
  new.changed_xid := pg_current_xact_id();
  return new;
end $$;

create table fleet.bus (
  bus_id text primary key check (bus_id ~ '^[A-Za-z0-9._~-]{1,64}$'),  -- fit for a path, a channel and an MQTT topic level
  partner_id text not null references public.partner,
  area text not null,                                                -- the feed whose trips it drives
  label text not null default '',
  plate text,
  created_at timestamptz not null default now(),
  retired_at timestamptz,
  changed_xid xid8 not null default pg_current_xact_id()
);
create index bus_partner on fleet.bus (partner_id, bus_id);
create index bus_changed on fleet.bus (changed_xid);
create trigger bus_change before update on fleet.bus for each row execute function fleet.stamp_change();

create table fleet.device (
  device_id uuid primary key,
  partner_id text not null references public.partner,
  kind text not null constraint device_kind check (kind in ('TOKEN', 'HMAC', 'GATEWAY')),
  name text not null default '',
  bus_ids text[] not null constraint device_buses check (cardinality(bus_ids) between 1 and 5000),
  unique_id text constraint device_unique_id unique,                   -- what the phone calls itself
  token_sha256 bytea constraint device_token unique,
  previous_sha256 bytea,                                               -- still good until previous_until
  mqtt_hash text not null,                                             -- the broker's own hash of the token or secret
  previous_mqtt_hash text,
  generation int not null default 1,                                   -- 1 + rotations; an HMAC secret is derived from it
  previous_until timestamptz,
  created_at timestamptz not null default now(),
  rotated_at timestamptz,
  retired_at timestamptz,
  changed_xid xid8 not null default pg_current_xact_id(),
  constraint device_token_kind check ((kind = 'HMAC') = (token_sha256 is null)),
  constraint device_one_bus check (kind <> 'TOKEN' or cardinality(bus_ids) = 1)
);
create index device_partner on fleet.device (partner_id, device_id);
create index device_bus on fleet.device using gin (bus_ids);
create index device_changed on fleet.device (changed_xid);
create trigger device_change before update on fleet.device for each row execute function fleet.stamp_change();

-- Apart from the device, so that hearing of one does not make every worker read it again.
create table fleet.device_seen (
  device_id uuid primary key references fleet.device on delete cascade,
  seen_at timestamptz not null
);
