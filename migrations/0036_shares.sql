-- Links that show one trip to whoever has them, for a while. The token stands here as its SHA-256 only, and nothing says who made a link: who
-- may end it is known by a keyed hash. Signed tokens would need no table and could not be taken back.

create schema sharing;

create table sharing.link (
  link_id uuid primary key,
  token_sha256 bytea not null constraint link_token unique check (octet_length(token_sha256) = 32),
  maker_sha256 bytea not null check (octet_length(maker_sha256) = 32),
  partner_id text not null references public.partner,
  trip_id text not null,                                   -- public id of the trip instance
  from_seq int,                                            -- stop sequences of the ride; null: not said
  to_seq int,
  made_at timestamptz not null,
  expires_at timestamptz not null,
  ended_at timestamptz,                                    -- by its maker
  constraint link_life check (expires_at > made_at and expires_at <= made_at + interval '48 hours')
);
create index link_expires on sharing.link (expires_at);

select office.fence('sharing.link');

-- A new link with its audit row; links that are over for a month go, a few at a time.
create function sharing.make(p_link uuid, p_token bytea, p_maker bytea, p_partner text, p_trip text, p_from int, p_to int, p_at timestamptz,
  p_expires timestamptz, p_actor text, p_request text) returns void language plpgsql volatile as $$
begin
  delete from sharing.link where link_id = any(array(select link_id from sharing.link where expires_at < p_at - interval '30 days'
    order by expires_at limit 20));
  insert into sharing.link (link_id, token_sha256, maker_sha256, partner_id, trip_id, from_seq, to_seq, made_at, expires_at)
    values (p_link, p_token, p_maker, p_partner, p_trip, p_from, p_to, p_at, p_expires);
  insert into office.audit (partner_id, actor, request_id, action, entity_kind, entity_id, diff)
    values (p_partner, p_actor, p_request, 'share.MADE', 'share', p_link, jsonb_build_object('tripId', p_trip, 'expiresAt', p_expires));
end $$;

-- Its maker ends it. False: there is no such link of that maker. Doing it again changes nothing.
create function sharing.finish(p_token bytea, p_maker bytea, p_at timestamptz, p_actor text, p_request text) returns bool
language plpgsql volatile as $$
declare l sharing.link;
begin
  select * into l from sharing.link where token_sha256 = p_token and maker_sha256 = p_maker for update;
  if not found then return false; end if;
  if l.ended_at is null then
    update sharing.link set ended_at = p_at where link_id = l.link_id;
    insert into office.audit (partner_id, actor, request_id, action, entity_kind, entity_id, diff)
      values (l.partner_id, p_actor, p_request, 'share.ENDED', 'share', l.link_id, jsonb_build_object('tripId', l.trip_id));
  end if;
  return true;
end $$;
