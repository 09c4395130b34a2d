-- Search: places by name with typing mistakes, trips between two places, and the seats that are free on them (a query over legs, never a
-- counter). Functions that read tables of partners work for all of them ('*'): what is on sale is public.

create extension if not exists pg_trgm;

-- A name as search compares it: no accents, no case, and what is not ASCII spelled out, for trigrams of a database in the C locale are made
-- of ASCII letters and digits only. Cyrillic and Greek capitals are named because lower() knows none there.
create function sale.fold(p_text text) returns text language sql immutable strict parallel safe as $$
  select coalesce(string_agg(case when ascii(c) < 128 then c else 'u' || to_hex(ascii(c)) end, '' order by n), '')
  from regexp_split_to_table(
    translate(lower(regexp_replace(normalize(p_text, NFKD), U&'[\0300-\036F\064B-\0652\0670]', '', 'g')),
      'øłđıØŁĐАБВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡΣΤΥΦΧΨΩς',
      'oldioldабвгдежзийклмнопрстуфхцчшщъыьэюяαβγδεζηθικλμνξοπρστυφχψωσ'), '') with ordinality t(c, n)
$$;

-- Stops of trips that are or were on sale, as their newest trip names them. Public.
create table sale.place (
  stop_id text primary key,               -- public id
  name text not null,
  lat double precision not null,
  lon double precision not null,
  folded text not null generated always as (sale.fold(name)) stored
);
create index place_folded on sale.place using gin (folded gin_trgm_ops);
create index place_at on sale.place (lat, lon);
create index stop_folded on network.stop using gin (sale.fold(name) gin_trgm_ops);

-- In the order of ids, and only what is new: openers of two routes that share stops never wait for each other in a circle.
create function sale.note_places() returns trigger language plpgsql as $$
begin
  insert into sale.place (stop_id, name, lat, lon)
    select distinct on (f.stop_id) f.stop_id, f.name, f.lat, f.lon from fresh f
    where not exists (select from sale.place p where p.stop_id = f.stop_id and p.name = f.name and p.lat = f.lat and p.lon = f.lon)
    order by f.stop_id, f.departs_at desc
    on conflict (stop_id) do update set name = excluded.name, lat = excluded.lat, lon = excluded.lon;
  return null;
end $$;
create trigger trip_stop_places after insert on sale.trip_stop referencing new table as fresh
  for each statement execute function sale.note_places();

select set_config('tp.partner', '*', true);
insert into sale.place (stop_id, name, lat, lon)
  select distinct on (stop_id) stop_id, name, lat, lon from sale.trip_stop order by stop_id, departs_at desc;

-- How like a name is to what somebody typed, 0 to 1: a whole word of it counts most, and of those that have it the shorter name.
create function sale.likeness(p_typed text, p_folded text) returns real language sql immutable strict parallel safe as $$
  select (0.8 * word_similarity(p_typed, p_folded) + 0.2 * similarity(p_typed, p_folded))::real
$$;

-- Stops that somebody may mean: {"text": a stop id or a name} or {"lat", "lon", "radius" in metres}. Of names those that are about as like
-- as the best one: Oran means every stop of Oran, and no Orania.
create function sale.stops_meant(p_place jsonb) returns table (stop_id text, score real) language plpgsql volatile as $$
declare v_typed text; v_lat float8; v_lon float8; v_m float8;
begin
  if p_place ? 'lat' then
    v_lat := p_place->>'lat'; v_lon := p_place->>'lon'; v_m := p_place->>'radius';
    return query select s.stop_id, (1 - s.away / v_m)::real from (
        select p.stop_id, 111195 * sqrt((p.lat - v_lat) ^ 2 + ((p.lon - v_lon) * cosd(v_lat)) ^ 2) as away from sale.place p
        where p.lat between v_lat - v_m / 111195 and v_lat + v_m / 111195) s
      where s.away <= v_m order by s.away limit 100;
    return;
  end if;
  return query select p.stop_id, 1::real from sale.place p where p.stop_id = p_place->>'text';
  if found then return; end if;
  v_typed := sale.fold(p_place->>'text');
  perform set_config('pg_trgm.word_similarity_threshold', '0.4', true);
  return query
    with like_it as materialized (
      select p.stop_id, word_similarity(v_typed, p.folded) as word, sale.likeness(v_typed, p.folded) as score from sale.place p
      where v_typed <% p.folded order by 3 desc limit 200)
    select l.stop_id, l.score from like_it l where l.word >= (select max(word) from like_it) - 0.15;
end $$;

-- Suggestions while somebody types: stops of sold trips first, then those of the feeds in force. [[id, name, lat, lon, sold]].
create function sale.places_like(p_typed text, p_most int) returns jsonb language plpgsql volatile as $$
declare v_typed text := sale.fold(p_typed); v_answer jsonb;
begin
  perform set_config('pg_trgm.word_similarity_threshold', '0.4', true);
  with sold as (
    select p.stop_id, p.name, p.lat, p.lon, true as sold, sale.likeness(v_typed, p.folded) as score from sale.place p
    where v_typed <% p.folded order by score desc, stop_id limit p_most),
  planned as (
    select f.feed_id || ':' || s.stop_id as stop_id, s.name, s.lat, s.lon, false as sold, sale.likeness(v_typed, sale.fold(s.name)) as score
    from network.stop s join network.feed f on f.active_version_id = s.version_id
    where v_typed <% sale.fold(s.name) and s.location_type = 0 order by score desc, stop_id limit p_most * 2),
  both_kinds as (
    select * from sold union all select * from planned n where not exists (select from sale.place p where p.stop_id = n.stop_id)
    order by sold desc, score desc, stop_id limit p_most)
  select coalesce(jsonb_agg(jsonb_build_array(stop_id, name, lat, lon, sold) order by sold desc, score desc, stop_id), '[]')
    into v_answer from both_kinds;
  return v_answer;
end $$;

-- ------------------------------------------------------------------------------------------------ trips

-- The kinds of seats that are sold, worked out once: of two hundred rides with two hundred seats each it took most of a search.
create function sale.kinds_of(p_layout jsonb) returns jsonb language sql immutable strict parallel safe as $$
  select coalesce(jsonb_agg(distinct coalesce(e->>'kind', 'STANDARD')), '[]') from jsonb_array_elements(p_layout->'seats') e
  where e->'blocked' is distinct from 'true'
$$;
alter table sale.seat_map add column kinds jsonb not null generated always as (sale.kinds_of(layout)) stored;

-- What a search shows of rides that changes rarely: [[trip_no, trip id, route id, partner, headsign, from, to, fare plan, currency, [kinds of
-- seats], [stop ids], [latitudes], [longitudes], [sequence, name, departs ms], [sequence, name, arrives ms]]], in the order of departure.
create function sale.rides(p_trips bigint[], p_from int[], p_to int[]) returns jsonb language sql volatile as $$
  select coalesce(jsonb_agg(jsonb_build_array(i.trip_no, i.trip_id, i.route_id, i.partner_id, i.headsign, r.f, r.t, i.fare_plan_id, i.currency,
      m.kinds, s.ids, s.lats, s.lons, jsonb_build_array(a.stop_sequence, a.name, floor(date_part('epoch', a.departs_at) * 1000)::bigint),
      jsonb_build_array(b.stop_sequence, b.name, floor(date_part('epoch', b.arrives_at) * 1000)::bigint)) order by a.departs_at, i.trip_id), '[]')
  from unnest(p_trips, p_from, p_to) r(no, f, t)
    join sale.trip_instance i on i.trip_no = r.no
    join sale.seat_map m on m.trip_no = i.trip_no and m.map_version = i.map_version
    join sale.trip_stop a on a.trip_no = r.no and a.place = r.f
    join sale.trip_stop b on b.trip_no = r.no and b.place = r.t,
    lateral (select array_agg(stop_id order by place) as ids, array_agg(lat order by place) as lats, array_agg(lon order by place) as lons
      from sale.trip_stop where trip_no = r.no and place between r.f and r.t) s
$$;

-- Rides on sale between two places on one local date (null: from now on), in the order of departure. Where a trip has several pairs of such
-- stops: the likest names, then the shortest ride.
create function sale.find(p_origin jsonb, p_destination jsonb, p_date date, p_days int, p_most int) returns jsonb
language plpgsql volatile as $$
declare v_trips bigint[]; v_from int[]; v_to int[]; v_begin timestamptz; v_end timestamptz;
begin
  perform set_config('tp.partner', '*', true);
  v_begin := greatest(clock_timestamp(), p_date::timestamp at time zone 'UTC' - interval '14 hours');  -- UTC+14 is the earliest date there is
  v_end := case when p_date is null then clock_timestamp() + make_interval(days => p_days)
    else p_date::timestamp at time zone 'UTC' + interval '36 hours' end;
  with o as materialized (select * from sale.stops_meant(p_origin)),
  d as materialized (select * from sale.stops_meant(p_destination)),
  pairs as (
    select distinct on (a.trip_no) a.trip_no, a.place as f, b.place as t, a.departs_at
    from o, lateral (select * from sale.trip_stop s where s.stop_id = o.stop_id and s.departs_at between v_begin and v_end and s.pickup) a
      join sale.trip_stop b on b.trip_no = a.trip_no and b.place > a.place and b.drop_off join d on d.stop_id = b.stop_id
    order by a.trip_no, o.score + d.score desc, b.place - a.place),
  open_ones as (
    select p.* from pairs p join sale.trip_instance i using (trip_no)
    where i.sales_open and i.status = 'SCHEDULED' and i.closes_at > clock_timestamp()
      and (p_date is null or (p.departs_at at time zone i.timezone)::date = p_date)
    order by p.departs_at, p.trip_no limit p_most)
  select array_agg(trip_no), array_agg(f), array_agg(t) into v_trips, v_from, v_to from open_ones;
  return sale.rides(v_trips, v_from, v_to);
end $$;

-- The same of these trips on their whole way, also where they are sold no more; those that never were are missing.
create function sale.find_trips(p_ids text[]) returns jsonb language plpgsql volatile as $$
declare v_trips bigint[]; v_from int[]; v_to int[];
begin
  perform set_config('tp.partner', '*', true);
  select array_agg(trip_no), array_agg(0), array_agg(stops - 1) into v_trips, v_from, v_to from sale.trip_instance where trip_id = any(p_ids);
  return sale.rides(v_trips, v_from, v_to);
end $$;

-- What changes all the time: [[trip_no, free seats between these places, permille of the trip that is taken, on sale]]. A hold past its end
-- takes no seat; of what is sold the booking is not looked at.
create function sale.seats_free(p_trips bigint[], p_from int[], p_to int[]) returns jsonb language plpgsql volatile as $$
declare v_answer jsonb;
begin
  perform set_config('tp.partner', '*', true);
  select coalesce(jsonb_agg(jsonb_build_array(r.no, cardinality(m.seats) - c.taken,
      least(c.ridden * 1000 / greatest(cardinality(m.seats) * (i.stops - 1), 1), 1000),
      i.sales_open and i.status = 'SCHEDULED' and i.closes_at > clock_timestamp()) order by r.n), '[]') into v_answer
  from unnest(p_trips, p_from, p_to) with ordinality r(no, f, t, n)
    join sale.trip_instance i on i.trip_no = r.no
    join sale.seat_map m on m.trip_no = i.trip_no and m.map_version = i.map_version,
    lateral (select count(distinct s.seat) filter (where s.legs && int4range(r.f, r.t) and not
          case when s.state = 'SOLD' then false else (select b.state in ('HELD', 'PENDING_PAYMENT') and not b.paying
            and b.expires_at <= clock_timestamp() from booking.booking b where b.booking_id = s.booking_id) end) as taken,
        coalesce(sum(upper(s.legs) - lower(s.legs)), 0) as ridden
      from booking.seat_claim s where s.trip_no = i.trip_no and s.map_version = i.map_version and s.active) c;
  return v_answer;
end $$;

-- The seat map in force and what stands on it: {"map", "claims": [[seat, from, to, until ms | null]]}; null: no such trip.
create function sale.seats_taken(p_trip bigint) returns jsonb language plpgsql volatile as $$
declare v_map int; v_claims jsonb;
begin
  perform set_config('tp.partner', '*', true);
  select map_version into v_map from sale.trip_instance where trip_no = p_trip;
  if not found then return null; end if;
  select coalesce(jsonb_agg(jsonb_build_array(c.seat, lower(c.legs), upper(c.legs), b.until) order by c.seat, lower(c.legs)), '[]') into v_claims
    from booking.seat_claim c
      left join lateral (select
          case when state in ('HELD', 'PENDING_PAYMENT') and not paying then floor(extract(epoch from expires_at) * 1000)::bigint end as until,
          state in ('HELD', 'PENDING_PAYMENT') and not paying and expires_at <= clock_timestamp() as over
        from booking.booking where booking_id = c.booking_id and c.state = 'HELD' offset 0) b on true
    where c.trip_no = p_trip and c.map_version = v_map and c.active and b.over is not true;
  return jsonb_build_object('map', v_map, 'claims', v_claims);
end $$;

-- Routes on sale, the most booked first: [[route id, bookings confirmed in so many days]].
create function sale.popular(p_days int, p_most int) returns jsonb language plpgsql volatile as $$
declare v_answer jsonb;
begin
  perform set_config('tp.partner', '*', true);
  with sold as (
    select distinct route_id from sale.trip_instance where sales_open and status = 'SCHEDULED' and closes_at > clock_timestamp()),
  booked as (
    select i.route_id, count(*) as n from booking.booking b join sale.trip_instance i using (trip_no)
    where b.held_at > clock_timestamp() - make_interval(days => p_days) and b.state in ('CONFIRMED', 'CHECKED_IN', 'BOARDED', 'COMPLETED')
    group by 1),
  best as (
    select route_id, coalesce(n, 0) as n from sold left join booked using (route_id) order by 2 desc, 1 limit p_most)
  select coalesce(jsonb_agg(jsonb_build_array(route_id, n) order by n desc, route_id), '[]') into v_answer from best;
  return v_answer;
end $$;
