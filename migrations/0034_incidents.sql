-- What people did with incidents: every step stays, who, when and what. telemetry.incidents keeps the last one beside the episode.

create table telemetry.incident_handlings (
  handling_id bigint generated always as identity primary key,
  incident_id text not null references telemetry.incidents on delete cascade,
  state text not null constraint incident_handling_state check (state in ('ACKNOWLEDGED', 'ASSIGNED', 'CLOSED')),
  handled_by text not null,                 -- subject of the person's token
  at timestamptz not null,
  assigned_to text,
  note text
);
create index incident_handlings_incident on telemetry.incident_handlings (incident_id, handling_id);
revoke update, delete, truncate on telemetry.incident_handlings from timepoint_app;

-- What people did before their steps were kept.
insert into telemetry.incident_handlings (incident_id, state, handled_by, at, assigned_to)
  select incident_id, handled_state, coalesce(handled_by, 'system'), coalesce(handled_at, opened_at), assigned_to
    from telemetry.incidents where handled_state is not null;

-- Lists are narrowed by these; newest first within.
create index incidents_bus on telemetry.incidents (bus_id, opened_at desc);
create index incidents_trip on telemetry.incidents (trip_id, start_date) where trip_id is not null;
drop index telemetry.incidents_open;
create index incidents_open on telemetry.incidents (area, opened_at desc) where closed_at is null and handled_state is distinct from 'CLOSED';

-- One step of a person with an episode of one of these areas (p_partners: whose each of them is), with its audit row. Answers DONE, SAME (it
-- is the last step already: a request that was sent again), CLOSED (somebody closed it: nothing follows), or null: there is no such episode.
create function telemetry.handle_incident(p_id text, p_areas text[], p_partners text[], p_state text, p_by text,
  p_actor text, p_request text, p_assigned text, p_note text, p_at timestamptz) returns text language plpgsql volatile as $$
declare i telemetry.incidents; l telemetry.incident_handlings;
begin
  select * into i from telemetry.incidents where incident_id = p_id and area = any(p_areas) for update;
  if not found then return null; end if;
  select * into l from telemetry.incident_handlings where incident_id = p_id order by handling_id desc limit 1;
  if found and (l.state, l.handled_by, l.assigned_to, l.note) is not distinct from (p_state, p_by, p_assigned, p_note) then return 'SAME'; end if;
  if i.handled_state = 'CLOSED' then return 'CLOSED'; end if;
  insert into telemetry.incident_handlings (incident_id, state, handled_by, at, assigned_to, note)
    values (p_id, p_state, p_by, p_at, p_assigned, p_note);
  update telemetry.incidents set handled_state = p_state, handled_by = p_by, handled_at = p_at,
    assigned_to = coalesce(p_assigned, assigned_to) where incident_id = p_id;
  perform set_config('tp.partner', '*', true);
  insert into office.audit (partner_id, actor, request_id, action, entity_kind, entity_id, diff)
    values (p_partners[array_position(p_areas, i.area)], p_actor, p_request, 'incident.' || p_state, 'incident',
      left(encode(sha256(p_id::bytea), 'hex'), 32)::uuid,
      jsonb_strip_nulls(jsonb_build_object('incidentId', p_id, 'kind', i.kind, 'assignedTo', p_assigned)));
  return 'DONE';
end $$;

-- Somebody called for help: the audit row (the episode itself comes with the area's stream).
create function telemetry.called(p_id text, p_partner text, p_actor text, p_request text, p_diff jsonb) returns void
language plpgsql volatile as $$
begin
  perform set_config('tp.partner', '*', true);
  insert into office.audit (partner_id, actor, request_id, action, entity_kind, entity_id, diff)
    values (p_partner, p_actor, p_request, 'incident.SOS', 'incident', left(encode(sha256(p_id::bytea), 'hex'), 32)::uuid, p_diff);
end $$;
