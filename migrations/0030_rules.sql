-- What people set for an area: thresholds, the window of being on time, and who is to drive which trip. Every worker asks once a second
-- whether the number of an area has risen (engine/tracking/rulebooks.py); whoever changes a rule lets it rise in the same transaction, and
-- the row lock puts such transactions one behind the other, so a reader that sees a number sees what belongs to it.

create table fleet.rule_mark (
  feed_id text primary key references network.feed on delete cascade,
  number bigint not null default 1
);

create function fleet.raise_rule_mark() returns trigger language plpgsql as $$
begin
  insert into fleet.rule_mark as m (feed_id) values (case when tg_op = 'DELETE' then old.feed_id else new.feed_id end)
    on conflict (feed_id) do update set number = m.number + 1;
  return null;
exception when foreign_key_violation then return null;  -- the feed itself goes, and its rules with it
end $$;

create table fleet.rules (
  feed_id text primary key references network.feed on delete cascade,
  watch jsonb not null default '{}',                      -- fields of engine.tracking.rules.WatchConfig that differ from the defaults
  on_time_early_s int not null default 60 constraint rules_early check (on_time_early_s between 0 and 3600),
  on_time_late_s int not null default 300 constraint rules_late check (on_time_late_s between 0 and 3600),
  version int not null default 1,
  changed_at timestamptz not null default clock_timestamp(),
  changed_by text not null
);
create trigger rules_mark after insert or update or delete on fleet.rules for each row execute function fleet.raise_rule_mark();

-- A dispatcher's or driver's word on who drives a trip instance. One in force per trip instance; withdrawn ones stay for the record.
create table fleet.trip_order (
  order_id uuid primary key,
  feed_id text not null references network.feed on delete cascade,
  trip_id text not null,
  start_date text not null constraint trip_order_date check (start_date ~ '^\d{8}$'),
  bus_id text not null references fleet.bus,
  driver_id text,
  said_as text not null constraint trip_order_said_as check (said_as in ('DISPATCHER', 'DRIVER')),
  said_by text not null,
  reason text not null default '',
  said_at timestamptz not null default clock_timestamp(),
  ends_at timestamptz not null,                           -- long past the trip's end: nobody has to know it any more
  withdrawn_at timestamptz,
  withdrawn_by text
);
create unique index trip_order_one on fleet.trip_order (feed_id, trip_id, start_date) where withdrawn_at is null;
create index trip_order_bus on fleet.trip_order (bus_id, said_at);
create index trip_order_in_force on fleet.trip_order (feed_id, ends_at) where withdrawn_at is null;
create trigger trip_order_mark after insert or update or delete on fleet.trip_order
  for each row execute function fleet.raise_rule_mark();
