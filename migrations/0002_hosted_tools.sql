-- Whether the upstream ran a tool itself (1) or not (0): the price of such a tool shows in no usage. NULL: no usage came.
ALTER TABLE turns ADD COLUMN hosted_tools BIGINT;
