"""The script that Redis runs for a group of writes: all of it, with nothing of others in between.

``ARGV`` holds the writes one after the other: a kind, the number of things, and for each thing as many values as
``redis_store`` gives it. The script's answer has one value for each write.
"""

__all__ = ["APPLY"]

APPLY = """
local p, at, out = KEYS[1], 0, {}
local function take() at = at + 1; return ARGV[at] end
local function add(id, user, time, digest, content)
    if redis.call('HEXISTS', p .. 'ids', id) == 1 then return '0' end
    local sequence = string.format('%d', redis.call('INCR', p .. 'sequence'))
    redis.call('HSET', p .. 'ids', id, sequence)
    redis.call('HSET', p .. 'events', sequence, content)
    redis.call('ZADD', p .. 'log', sequence, sequence)
    redis.call('ZADD', p .. 'user:' .. user, time, string.format('%016d', sequence))
    redis.call('ZADD', p .. 'users', 0, user)
    redis.call('SREM', p .. 'deleted', digest)
    return '1'
end
local function show(id, user, time, digest, named, nameless)
    local number = string.format('%d', redis.call('INCR', p .. 'number'))
    if redis.call('HSETNX', p .. 'response_ids', id, number) == 0 then return end
    if user == '' or redis.call('SISMEMBER', p .. 'deleted', digest) == 1 then
        redis.call('HSET', p .. 'impressions', number, nameless)
    else
        redis.call('HSET', p .. 'impressions', number, named)
        redis.call('ZADD', p .. 'shown:' .. string.sub(user, 2), time, string.format('%016d', number))
    end
end
local function erase(list, hash, ids, log)
    local numbers = redis.call('ZRANGE', list, 0, -1)
    for _, padded in ipairs(numbers) do
        local number = string.format('%d', padded)
        local id = cjson.decode(redis.call('HGET', p .. hash, number))[1]
        redis.call('HDEL', p .. ids, id)
        redis.call('HDEL', p .. hash, number)
        if log then redis.call('ZREM', p .. log, number) end
    end
    redis.call('DEL', list)
    return #numbers
end
while at < #ARGV do
    local kind, count = take(), tonumber(take())
    if kind == 'events' or kind == 'import' then
        local new = {}
        for i = 1, count do
            local id, user, time, digest, content = take(), take(), take(), take(), take()
            if kind == 'import' and redis.call('SISMEMBER', p .. 'deleted', digest) == 1 then
                new[i] = '0'
            else
                new[i] = add(id, user, time, digest, content)
            end
        end
        out[#out + 1] = table.concat(new)
    elseif kind == 'items' then
        local revision = redis.call('INCR', p .. 'revision')
        for i = 1, count do
            local id, content = take(), take()
            redis.call('HSET', p .. 'items', id, content)
            redis.call('ZADD', p .. 'revisions', revision, id)
        end
        out[#out + 1] = revision
    elseif kind == 'impressions' then
        for i = 1, count do show(take(), take(), take(), take(), take(), take()) end
        out[#out + 1] = count
    elseif kind == 'audit' then
        out[#out + 1] = redis.call('RPUSH', p .. 'audit', take())
    elseif kind == 'imported' then
        out[#out + 1] = redis.call('HSET', p .. 'imports', take(), '1')
    elseif kind == 'check' then
        out[#out + 1] = redis.call('INCR', p .. 'check')
    elseif kind == 'delete' then
        local user, digest = take(), take()
        local gone = erase(p .. 'user:' .. user, 'events', 'ids', 'log')
        gone = gone + erase(p .. 'shown:' .. user, 'impressions', 'response_ids')
        redis.call('ZREM', p .. 'users', user)
        redis.call('SADD', p .. 'deleted', digest)
        out[#out + 1] = gone
    end
end
return out
"""
