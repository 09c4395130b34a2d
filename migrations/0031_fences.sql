-- Geofences: areas that an operator draws. Which fences hold where is decided by the engine (geo/fence.py, engine/tracking/fences.py); here they
-- are kept, found on a map, and read by the workers: a change lets the number of the area's rules rise (0030), and `changed_xid` says which
-- rows to read (as for fleet.bus in 0002).

create table fleet.fence (
  fence_id uuid primary key,
  partner_id text not null references public.partner,
  feed_id text not null references network.feed on delete cascade,   -- the area whose buses it is for
  name text not null constraint fence_name check (char_length(name) between 1 and 200),
  kind text not null constraint fence_kind check (kind in ('PLAIN', 'RESTRICTED', 'STAY_IN', 'SPEED_ZONE', 'CORRIDOR')),
  severity text not null constraint fence_severity check (severity in ('MINOR', 'MAJOR', 'CRITICAL')),
  drawing jsonb not null,                          -- GeoJSON as it was drawn; a Circle with radiusM, a LineString with halfWidthM
  shape geometry(Geometry, 4326) not null,         -- the same without these: for maps and reports
  radius_m float8 constraint fence_radius check (radius_m > 0),
  half_width_m float8 constraint fence_half_width check (half_width_m > 0),
  depth_m float8 not null constraint fence_depth check (depth_m > 0),  -- how deep inside one can be
  box geometry(Polygon, 4326) not null,            -- of all that it encloses; over the 180th meridian it goes on past 180
  calendar jsonb,                                  -- when it holds; null: always
  buses text[] not null default '{}',              -- both empty: for all of the area
  routes text[] not null default '{}',             -- route ids of the feed
  limit_kmh float8,
  version int not null default 1,
  created_at timestamptz not null default clock_timestamp(),
  changed_at timestamptz not null default clock_timestamp(),
  changed_by text not null,
  retired_at timestamptz,
  changed_xid xid8 not null default pg_current_xact_id(),
  constraint fence_limit check ((kind = 'SPEED_ZONE') = (limit_kmh is not null) and (limit_kmh is null or limit_kmh between 1 and 200))
);
create index fence_partner on fleet.fence (partner_id, fence_id);
create index fence_changed on fleet.fence (feed_id, changed_xid);
create index fence_in_force on fleet.fence (feed_id) where retired_at is null;
create index fence_box on fleet.fence using gist (box);
create trigger fence_change before update on fleet.fence for each row execute function fleet.stamp_change();
create trigger fence_mark after insert or update or delete on fleet.fence for each row execute function fleet.raise_rule_mark();

select office.fence('fleet.fence');

-- Fences of an area of transactions from a mark on (0: all), retired ones too; for the workers, which track for every partner.
create function fleet.fences_since(p_feed text, p_mark bigint) returns table (fence_id text, name text, kind text, severity text, drawing text,
  depth_m float8, calendar text, buses text[], routes text[], limit_kmh float8, version int, retired boolean)
language plpgsql volatile as $$
begin
  perform set_config('tp.partner', '*', true);
  return query
    select f.fence_id::text, f.name, f.kind, f.severity, f.drawing::text, f.depth_m, f.calendar::text, f.buses, f.routes, f.limit_kmh, f.version,
      f.retired_at is not null
    from fleet.fence f
    where f.feed_id = p_feed and f.changed_xid >= p_mark::text::xid8 and (p_mark > 0 or f.retired_at is null)
    order by f.fence_id;
end $$;
