-- Arrivals as they were published, sampled once a minute a vehicle, and how good they turned out to be.
-- Samples come with the fixes of the same batch (engine/tracking/history.py); a nightly job joins them with the stops that were served
-- (engine/tracking/nights.py). In which mode (see 0010) stands in telemetry.meta.

do $forecasts$
declare
  plain boolean := (select val = 'plain' from telemetry.meta where key = 'mode');
begin
  execute $t$
    create table telemetry.forecasts (
      made_at timestamptz not null,
      bus_no int not null,                                -- numbers of telemetry.names, as in points
      area_no int not null,
      trip_no int not null,
      start_date int not null,                            -- yyyymmdd
      first_sequence int not null,
      sequences int[],                                    -- stop sequences of the arrays; null: first_sequence and on without a gap
      p10_s smallint[] not null,                          -- seconds from made_at; 32,767 and more stand as 32,767
      p50_s smallint[] not null,
      p90_s smallint[] not null,
      primary key (bus_no, made_at)                       -- the same sample twice is one row
    ) $t$ || case when plain then 'partition by range (made_at)' else '' end;
  if not plain then
    perform create_hypertable('telemetry.forecasts', by_range('made_at', interval '1 day'), create_default_indexes => false);
  end if;
end $forecasts$;
create index forecasts_trip on telemetry.forecasts (trip_no, start_date);

-- One row for each service date, route and bucket of the time to the actual arrival, or of the time that was foretold.
create table telemetry.eta_accuracy (
  day date not null,                                      -- service date (start_date of GTFS)
  area text not null,
  route_id text not null,
  horizon text not null constraint eta_accuracy_horizon check (horizon in ('ACTUAL', 'PREDICTED')),
  from_s int not null,                                    -- (from_s, to_s]
  to_s int not null,
  samples int not null,                                   -- those without a value among them
  missing int not null,                                   -- samples without a value; 0 for PREDICTED
  in_window int not null,                                 -- inside the benchmark's window of the bucket; 0 beyond 15 min
  covered int not null,                                   -- arrival within p10 .. p90
  early int not null,                                     -- the bus came over 60 s before it was said to
  error_sum_s bigint not null,                            -- actual minus foretold
  size_sum_s bigint not null,                             -- of the errors without their sign
  p50_s int,                                              -- of the errors without their sign; null: no sample with a value
  p90_s int,
  primary key (day, area, route_id, horizon, from_s)
);
create index eta_accuracy_route on telemetry.eta_accuracy (area, route_id, day);

-- Days that are worked out: what a job that was cut off goes by.
create table telemetry.eta_days (
  day date not null,
  area text not null,
  computed_at timestamptz not null,
  rides int not null,
  samples bigint not null,
  primary key (area, day)
);

-- Partitions of forecasts for the days around now, as telemetry.ensure_partitions makes them for points.
create function telemetry.ensure_forecast_days(back int, ahead int) returns int
language plpgsql security definer set search_path = pg_catalog as $$
declare
  day date;
  made int := 0;
  part text;
begin
  if (select val from telemetry.meta where key = 'mode') <> 'plain' then return 0; end if;
  perform pg_advisory_xact_lock(hashtext('telemetry.forecasts'));
  for day in select (now() at time zone 'utc')::date + i from generate_series(-back, ahead) i loop
    part := 'forecasts_' || to_char(day, 'YYYYMMDD');
    if to_regclass('telemetry.' || part) is null then
      execute format('create table telemetry.%I partition of telemetry.forecasts for values from (%L) to (%L)',
                     part, day::timestamp at time zone 'utc', (day + 1)::timestamp at time zone 'utc');
      made := made + 1;
    end if;
  end loop;
  return made;
end $$;

-- Whole days of forecasts older than `keep`; answers how many went.
create function telemetry.drop_forecasts(keep interval) returns int
language plpgsql security definer set search_path = pg_catalog, public as $$
declare
  found record;
  gone int := 0;
  cut timestamptz := now() - keep;
begin
  if (select val from telemetry.meta where key = 'mode') <> 'plain' then
    execute 'select count(*) from drop_chunks(''telemetry.forecasts'', older_than => $1)' into gone using cut;
    return gone;
  end if;
  for found in
    select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
     where i.inhparent = 'telemetry.forecasts'::regclass
       and to_date(substring(c.relname from '^forecasts_(\d{8})$'), 'YYYYMMDD') + 1 <= (cut at time zone 'utc')::date
  loop
    execute format('drop table telemetry.%I', found.relname);
    gone := gone + 1;
  end loop;
  return gone;
end $$;

revoke execute on function telemetry.ensure_forecast_days(int, int), telemetry.drop_forecasts(interval) from public;
grant execute on function telemetry.ensure_forecast_days(int, int), telemetry.drop_forecasts(interval) to timepoint_app;

select telemetry.ensure_forecast_days(4, 7);
