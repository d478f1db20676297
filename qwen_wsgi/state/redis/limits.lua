-- What one client takes of its limits: `access.limits` in Redis, on the same packed state.
-- KEYS: the state; what the worker has open. ARGV: see `limits.Change.args`.
local B, RINGS = 121, {{5, 128, '<i8', 2 ^ 53}, {4, 1096, '<i4', 2 ^ 31 - 1}, {0, 1580, '<I2', 499}}
local TOKENS, REQUESTS, LAST = RINGS[1], RINGS[2], RINGS[3]
local s, client, arg = redis.call('GET', KEYS[1]), ARGV[1], {}
for i = 2, #ARGV do arg[i] = tonumber(ARGV[i]) end
if not s or #s ~= 1822 then s = struct.pack('<i8', 1) .. ('\0'):rep(1814) end
-- h: version, bucket, wall, requests, tokens, day, its tokens, month, its money, begun, in flight.
local h = {struct.unpack('<' .. ('i8'):rep(16), s)}
if h[10] == 0 then h[10] = arg[6] end
local time = redis.call('TIME')
local at = arg[2] or time[1] * 1000 + math.floor(time[2] / 1000)

local function read(ring, b) return (struct.unpack(ring[3], s, ring[2] + 1 + struct.size(ring[3]) * (b % B))) end
local function write(ring, b, value)
  local packed = struct.pack(ring[3], value)
  local from = ring[2] + #packed * (b % B)
  s = s:sub(1, from) .. packed .. s:sub(from + #packed + 1)
end
local function add(ring, b, amount)
  local before = read(ring, b)
  local after = math.min(math.max(before + amount, 0), ring[4])
  write(ring, b, after)
  h[ring[1]] = h[ring[1]] + after - before
end
local function clear(b)
  add(TOKENS, b, -read(TOKENS, b)); add(REQUESTS, b, -read(REQUESTS, b)); write(LAST, b, 0)
end
local function turn(period, used, now)  -- a wall clock that is set back a little gives no second day
  if now ~= h[period] and not (h[period] - now == 1 and h[3] - arg[3] < 3600) then
    h[period], h[used] = now, 0
  end
end
local function book(b, day, month, requests, tokens, money)
  if h[2] - B < b and b <= h[2] then add(REQUESTS, b, requests); add(TOKENS, b, tokens) end
  if day == h[6] then h[7] = math.max(0, h[7] + tokens) end
  if month == h[8] then h[9] = math.max(0, h[9] + money) end
end
local function open(kind, b, day, amount)  -- what changes: no more is given back than there is
  if amount == 0 then return 0 end
  local name = kind .. '|' .. client .. '|' .. day .. '|' .. b
  local before = tonumber(redis.call('HGET', KEYS[2], name) or 0)
  local after = math.max(0, before + amount)
  if after > 0 then redis.call('HSET', KEYS[2], name, after) else redis.call('HDEL', KEYS[2], name) end
  redis.call('EXPIRE', KEYS[2], 172800)
  return after - before
end

local b = math.floor(at / 500)
if math.abs(b - h[2]) >= B then
  s, h[2], h[4], h[5] = s:sub(1, 128) .. ('\0'):rep(1694), b, 0, 0
else
  for passed = h[2] + 1, b do clear(passed) end
  h[2] = math.max(h[2], b)
end
local oldest = h[2] - B + 1
if at >= oldest * 500 + read(LAST, oldest) + 60000 then clear(oldest) end
turn(6, 7, arg[4]); turn(8, 9, arg[5]); h[3] = arg[3]
if arg[7] ~= h[10] then  -- begun anew, or older than what the worker knows
  if arg[8] == h[6] then h[7] = math.max(h[7], arg[9]) end
  if arg[10] == h[8] then h[9] = math.max(h[9], arg[11]) end
end

local batch = 'b|' .. client
if arg[12] == 0 or redis.call('HGET', KEYS[2], batch) ~= ARGV[12] then  -- else it is done already
  for i = 22, #ARGV, 9 do
    local where = math.min(arg[i], h[2])
    local tokens = arg[i + 4] + open('t', arg[i], arg[i + 1], arg[i + 6]) * arg[i + 8]
    book(where, arg[i + 1], arg[i + 2], arg[i + 3], tokens, arg[i + 5])
    h[11] = math.max(0, h[11] + open('p', arg[i], arg[i + 1], arg[i + 7]))
    if arg[i + 3] > 0 and h[2] - B < where then write(LAST, where, 499) end  -- when exactly is not known
  end
  if arg[12] ~= 0 then redis.call('HSET', KEYS[2], batch, ARGV[12]) end
end

local requests, tokens, money, places = arg[18], arg[19], arg[20], arg[21]
local function over(limit, used, wanted) return limit and used + wanted > limit end
local granted = 1
if requests >= 0 and (over(arg[13], h[4], requests) or over(arg[14], h[5], math.max(tokens, 1))
  or over(arg[15], h[7], math.max(tokens, 1)) or over(arg[16], h[9], math.max(money, 1))
  or (places > 0 and over(arg[17], h[11], places))) then
  granted = 0
elseif requests >= 0 then
  book(h[2], h[6], h[8], requests, tokens, money)
  open('t', h[2], h[6], tokens)
  h[11] = h[11] + open('p', h[2], h[6], places)
  if at - h[2] * 500 > read(LAST, h[2]) then write(LAST, h[2], at - h[2] * 500) end
end
s = struct.pack('<' .. ('i8'):rep(16), unpack(h, 1, 16)) .. s:sub(129)
redis.call('SET', KEYS[1], s, 'EX', 3456000)
return {granted, at, s}
