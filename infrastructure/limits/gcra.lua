-- All policies of one request at once, as `gcra.py` has them; of several requests, one after the other. The argument
-- has numbers, with spaces: for each request of how many keys, and then of each key microseconds in which one more may
-- come, how many may come at once, and 1 if what is too much is refused. Returns of each key the microseconds until it
-- would pass, in the same way: an argument or an answer for each number would take most of the client's time. The time
-- is Redis' own, so that the clocks of the processes do not matter.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local function keep(key, tat)
    redis.call('SET', key, string.format('%.0f', tat), 'PX', math.ceil((tat - now) / 1000))
end

local given = {}
for number in string.gmatch(ARGV[1], '%d+') do given[#given + 1] = tonumber(number) end

local waits, key_at, given_at = {}, 1, 1
while given_at <= #given do
    local keys, paid, passes = given[given_at], {}, true
    for i = 0, keys - 1 do
        local at = given_at + 3 * i
        local interval, burst, enforced = given[at + 1], given[at + 2], given[at + 3] == 1
        local full = now + interval * burst
        -- What is no number, or not even text, is nothing of ours: it is written over.
        local key = KEYS[key_at + i]
        local stored = redis.pcall('GET', key)
        local tat = math.max(now, type(stored) == 'string' and tonumber(stored) or now)
        if tat > full then  -- the clock was set back
            tat = full
            keep(key, tat)
        end
        paid[i] = tat + interval
        waits[key_at + i] = math.max(0, paid[i] - full)
        if enforced and waits[key_at + i] > 0 then passes = false end
    end
    for i = 0, keys - 1 do
        if passes and waits[key_at + i] == 0 then keep(KEYS[key_at + i], paid[i]) end
    end
    key_at, given_at = key_at + keys, given_at + 1 + 3 * keys
end
for i, wait in ipairs(waits) do waits[i] = string.format('%.0f', wait) end
return table.concat(waits, ' ')
