-- Summaries for managers: what a month of a fleet did, in few enough rows to be read at once. Written by one worker
-- (engine/tracking/summaries.py) from stop events and points; a day is written anew as long as its events change.

create schema analytics;

-- The service days that are summarised.
create table analytics.day (
  area text not null,
  service_day date not null,
  version_id bigint not null,                              -- of the feed by which its events were judged
  mark text not null,                                      -- of its events: another one, and the day is summarised again
  made_at timestamptz not null,
  primary key (area, service_day)
);

-- Calls by how late they were: `below[k]` of `n` calls were less than (k - 61) * 30 s late, k = 1 .. 181: edges from half an hour early to an
-- hour late. Any window of punctuality is two look-ups a row.
create table analytics.delay (
  area text not null,
  service_day date not null,
  route_id text not null,
  direction_id smallint not null,
  hour smallint not null,                                  -- of the planned time; 25 is an hour after midnight
  n int not null,                                          -- calls whose time is known
  missed int not null,                                     -- others: stops that were missed
  delay_sum_s bigint not null,
  below int[] not null constraint delay_edges check (cardinality(below) = 181),
  primary key (area, service_day, route_id, direction_id, hour)
);
create table analytics.stop_delay (
  area text not null,
  service_day date not null,
  route_id text not null,
  direction_id smallint not null,
  stop_id text not null,
  n int not null,
  missed int not null,
  delay_sum_s bigint not null,
  below int[] not null constraint stop_delay_edges check (cardinality(below) = 181),
  primary key (area, service_day, route_id, direction_id, stop_id)
);

-- Times between two departures of a route from a stop, seconds: as they were and as they were planned.
create table analytics.headway (
  area text not null,
  service_day date not null,
  route_id text not null,
  direction_id smallint not null,
  stop_id text not null,
  place smallint not null,                                 -- of the stop on the line, the least of its patterns
  n int not null,                                          -- observed
  sum_s double precision not null,
  sum2_s double precision not null,                        -- of their squares
  planned_n int not null,
  planned_sum_s double precision not null,
  planned_sum2_s double precision not null,
  compared int not null,                                   -- of the observed ones those whose planned headway is known
  bunched int not null,                                    -- below a quarter of it
  gapped int not null,                                     -- above one and a half of it
  primary key (area, service_day, route_id, direction_id, stop_id)
);

-- Fixes by place: cells of a thousandth of a degree (111 m from north to south).
create table analytics.heat (
  area text not null,
  service_day date not null,                               -- the local date of the fix
  x int not null,                                          -- floor(lon * 1000)
  y int not null,
  fixes int not null,
  speeds int not null,                                     -- of them with a speed
  speed_sum_cms bigint not null,
  primary key (area, service_day, y, x)
);
create table analytics.heat_until (only_row bool primary key default true check (only_row), until timestamptz not null);

grant insert, update, delete on all tables in schema analytics to timepoint_app;
grant select on all tables in schema analytics to timepoint_app, timepoint_read;
