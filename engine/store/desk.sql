-- name: tenant
-- Whose rows this transaction sees: a partner's, or '*' for all of them.
select set_config('tp.partner', $1, true)

-- name: answered
-- What is stored for a key (its lock taken), IDEMPOTENCY_KEY_REUSED where the request was another, or null.
select booking.answered($1, $2)

-- name: keep_answer
-- The answer to a key, with its effect.
select booking.keep_answer($1, $2, $3, $4)
