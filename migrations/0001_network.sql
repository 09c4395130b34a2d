-- The planned world: GTFS feeds by version. Everything of a version is written in one transaction and then only read; `feed.active_version_id`
-- says which one is in force. Workers read a whole version into memory (engine/store/network.py); the tables serve searches and joins besides.
-- Ids are the feed's own, so every key starts with the version.

create table public.partner (
  partner_id text primary key check (partner_id ~ '^[A-Za-z0-9._-]{1,48}$'),
  name text not null,
  created_at timestamptz not null default now()
);

create schema network;

create table network.feed (
  feed_id text primary key constraint feed_id_form check (feed_id ~ '^[A-Za-z0-9._-]{1,48}$'),  -- stands before the colon of public ids
  partner_id text not null references public.partner,
  active_version_id bigint,
  created_at timestamptz not null default now()
);
create index feed_partner on network.feed (partner_id);

create table network.feed_version (
  version_id bigint generated always as identity primary key,
  feed_id text not null references network.feed on delete cascade,
  version text not null,                  -- first 16 digits of the sha256; with .2, .3 where the same zip was taken again on purpose
  sha256 text not null check (sha256 ~ '^[0-9a-f]{64}$'),
  timezone text not null,
  imported_at timestamptz not null default now(),
  info jsonb not null default '{}',       -- feed_info.txt, counts, number of warnings
  unique (feed_id, version)
);
create index feed_version_sha on network.feed_version (feed_id, sha256);
alter table network.feed add foreign key (active_version_id) references network.feed_version;

create table network.agency (
  version_id bigint not null references network.feed_version on delete cascade,
  agency_id text not null,
  name text not null,
  timezone text not null,
  url text not null,
  primary key (version_id, agency_id)
);

create table network.stop (
  version_id bigint not null references network.feed_version on delete cascade,
  stop_id text not null,
  name text not null,
  lat double precision not null,
  lon double precision not null,
  point geometry(Point, 4326) not null generated always as (st_setsrid(st_makepoint(lon, lat), 4326)) stored,
  code text,
  parent_station text,
  location_type smallint not null,
  platform text,
  wheelchair smallint not null,
  primary key (version_id, stop_id)
);
create index stop_point on network.stop using gist (point);

create table network.route (
  version_id bigint not null references network.feed_version on delete cascade,
  route_id text not null,
  agency_id text,
  short_name text not null,
  long_name text not null,
  kind smallint not null,                 -- GTFS route_type
  color text,
  text_color text,
  sort_order int,
  primary key (version_id, route_id)
);

create table network.service (
  version_id bigint not null references network.feed_version on delete cascade,
  service_id text not null,
  weekdays bool[] not null constraint service_weekdays check (cardinality(weekdays) = 7),  -- Monday first
  starts_on date,                         -- null: only `added` counts
  ends_on date,
  added date[] not null,
  removed date[] not null,
  primary key (version_id, service_id)
);

create table network.shape (
  version_id bigint not null references network.feed_version on delete cascade,
  shape_id text not null,
  line geometry(LineString, 4326) not null,
  primary key (version_id, shape_id)
);
create index shape_line on network.shape using gist (line);

create table network.pattern (
  version_id bigint not null references network.feed_version on delete cascade,
  pattern_id text not null,
  route_id text not null,
  direction_id smallint not null,
  shape_id text not null,
  stop_ids text[] not null,
  stop_sequences int[] not null,
  along_m double precision[] not null,    -- metres along the shape, strictly increasing
  timepoint bool[] not null,
  from_stops bool not null,               -- the feed has no shape: the line is the chain of stops
  primary key (version_id, pattern_id),
  foreign key (version_id, route_id) references network.route,
  foreign key (version_id, shape_id) references network.shape,
  constraint pattern_lengths check (
    cardinality(stop_ids) >= 2 and cardinality(stop_ids) = cardinality(stop_sequences)
    and cardinality(stop_ids) = cardinality(along_m) and cardinality(stop_ids) = cardinality(timepoint))
);
create index pattern_route on network.pattern (version_id, route_id);
create index pattern_stops on network.pattern using gin (stop_ids);

create table network.trip (
  version_id bigint not null references network.feed_version on delete cascade,
  trip_id text not null,
  route_id text not null,
  service_id text not null,
  pattern_id text not null,
  arrival_s int[] not null,               -- seconds after noon minus 12 h of the service date, one for each stop of the pattern
  departure_s int[] not null,
  headsign text,
  block_id text,                          -- a block is the trips of one vehicle on one service date, in order of departure
  short_name text,
  frequency_of text,                      -- the feed's trip_id where frequencies.txt made this trip
  bikes smallint not null,
  wheelchair smallint not null,
  primary key (version_id, trip_id),
  foreign key (version_id, service_id) references network.service,
  foreign key (version_id, pattern_id) references network.pattern,
  constraint trip_lengths check (cardinality(arrival_s) = cardinality(departure_s) and cardinality(arrival_s) >= 2)
);
create index trip_block on network.trip (version_id, block_id) where block_id is not null;
create index trip_pattern on network.trip (version_id, pattern_id);
create index trip_service on network.trip (version_id, service_id);
