"""SPDK's envelope, row by row: the exact bytes of the answer to each request."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from tests.rpc.conftest import TEST_METHODS, World
from ubi_rpc.errors import ErrorKind
from ubi_rpc.rpc import dispatch
from ubi_rpc.rpc.dispatch import Dispatcher
from ubi_rpc.rpc.framing import INCOMPLETE, request_parser
from ubi_rpc.rpc.method import State
from ubi_rpc.rpc.session import Session
from ubi_rpc.rpc.wire_errors import TOO_EARLY, TOO_LATE, WireError

INVALID = '{"code":-32600,"message":"Invalid request"}'
NOT_FOUND = '{"code":-32601,"message":"Method not found"}'


async def ask(dispatcher: Dispatcher, request: str, session: Session | None = None) -> str | None:
    parser = request_parser()
    parser.feed(request.encode())
    value = parser.next_value()
    assert value is not INCOMPLETE
    answer = await dispatcher.handle(value, session or Session())
    return None if answer is None else answer.decode("ascii")


def result(id_text: str, text: str) -> str:
    return f'{{"jsonrpc":"2.0","id":{id_text},"result":{text}}}'


def error(id_text: str, text: str) -> str:
    return f'{{"jsonrpc":"2.0","id":{id_text},"error":{text}}}'


def echo(id_text: str, value: str = "1") -> str:
    return f'{{"method":"echo","params":{{"value":{value}}},"id":{id_text}}}'


@pytest.mark.parametrize(
    ("request_text", "answer"),
    [
        # jsonrpc is optional.
        ('{"jsonrpc":"2.0","method":"version","id":1}', result("1", '{"version":"v1"}')),
        ('{"method":"version","id":1}', result("1", '{"version":"v1"}')),
        ('{"id":1,"params":null,"method":"version"}', result("1", '{"version":"v1"}')),
        # The id is the client's own text.
        *(
            (echo(id_text), result(id_text, "1"))
            for id_text in ("1.50", "1e2", "1E+2", "-0", "1e400", "9" * 30, "0.10")
        ),
        (echo('"a"'), result('"a"', "1")),
        (echo('""'), result('""', "1")),
        (echo(r'"\u00e9\/\u0001"'), result(r'"\u00E9/\u0001"', "1")),
        (echo('"' + "i" * 1000 + '"'), result('"' + "i" * 1000 + '"', "1")),
        # Params: null and {} are as good as absent.
        ('{"method":"version","params":{},"id":1}', result("1", '{"version":"v1"}')),
        # Notifications that succeed.
        ('{"method":"version"}', None),
        ('{"method":"version","id":null}', None),
        # Notifications that fail.
        ('{"method":"nope"}', error("null", NOT_FOUND)),
        ('{"method":"nope","id":null}', error("null", NOT_FOUND)),
        # Method.
        ('{"method":"nope","id":1}', error("1", NOT_FOUND)),
        ('{"method":"","id":1}', error("1", NOT_FOUND)),
        ('{"method":"__class__","id":1}', error("1", NOT_FOUND)),
        ('{"method":5,"id":1}', error("null", INVALID)),
        ('{"method":null,"id":1}', error("null", INVALID)),
        ('{"id":1}', error("null", INVALID)),
        ("{}", error("null", INVALID)),
        # jsonrpc.
        ('{"jsonrpc":"1.0","method":"version","id":1}', error("null", INVALID)),
        ('{"jsonrpc":2.0,"method":"version","id":1}', error("null", INVALID)),
        ('{"jsonrpc":null,"method":"version","id":1}', error("null", INVALID)),
        # Unknown and repeated members.
        ('{"method":"version","id":1,"x":1}', error("null", INVALID)),
        ('{"method":"version","method":"version","id":1}', error("null", INVALID)),
        ('{"method":"version","id":1,"id":1}', error("null", INVALID)),
        ('{"method":"version","params":{},"params":{},"id":1}', error("null", INVALID)),
        # id.
        ('{"method":"version","id":true}', error("null", INVALID)),
        ('{"method":"version","id":{}}', error("null", INVALID)),
        ('{"method":"version","id":[1]}', error("null", INVALID)),
        # Params of no allowed type: the one fault that keeps the id.
        ('{"method":"version","params":5,"id":7}', error("7", INVALID)),
        ('{"method":"version","params":"x","id":"q"}', error('"q"', INVALID)),
        ('{"method":"version","params":false,"id":7}', error("7", INVALID)),
        ('{"method":"nope","params":1,"id":1.50}', error("1.50", INVALID)),
        ('{"method":5,"params":1,"id":7}', error("null", INVALID)),
        # Not an object.
        ("5", error("null", INVALID)),
        ('"x"', error("null", INVALID)),
        ("null", error("null", INVALID)),
        ("true", error("null", INVALID)),
        # Text out: ASCII, upper-case escapes, no escaped slash.
        (echo("1", '"é€😀/\\u007f\\u001f\\"\\\\"'), result("1", r'"\u00E9\u20AC\uD83D\uDE00/\u007F\u001F\"\\"')),
        (echo("1", r'"\\u00e9"'), result("1", r'"\\u00e9"')),
        (echo("1", r'{"\u00e9":[1.5,true,null,{}]}'), result("1", r'{"\u00E9":[1.5,true,null,{}]}')),
        # Batches.
        ("[]", error("null", INVALID)),
        (f"[{echo('1')}]", f"[{result('1', '1')}]"),
        (f"[{echo('1')},{echo('1', '2')}]", f"[{result('1', '1')},{result('1', '2')}]"),
        ("[1]", f"[{error('null', INVALID)}]"),
        ("[[]]", f"[{error('null', INVALID)}]"),
        (f"[1,{echo('2')},null]", f"[{error('null', INVALID)},{result('2', '1')},{error('null', INVALID)}]"),
        ('[{"method":"version"},{"method":"version","id":null}]', None),
        (f'[{{"method":"version"}},{echo("3")}]', f"[{result('3', '1')}]"),
        ('[{"method":"nope"}]', f"[{error('null', NOT_FOUND)}]"),
        (
            '[{"method":"nope","id":4},{"method":"version","params":1,"id":5}]',
            f"[{error('4', NOT_FOUND)},{error('5', INVALID)}]",
        ),
    ],
)
async def test_envelope_answer_is_spdks(dispatcher: Dispatcher, request_text: str, answer: str | None) -> None:
    assert await ask(dispatcher, request_text) == (None if answer is None else answer + "\n")


@pytest.mark.parametrize(
    ("method", "params", "code", "message"),
    [
        ("fail", '{"kind":"not_found"}', -19, "No such device"),
        ("fail", '{"kind":"already_exists"}', -17, "File exists"),
        ("fail", '{"kind":"invalid_params"}', -22, "Invalid argument"),
        ("fail", '{"kind":"permission"}', -1, "Operation not permitted"),
        ("fail", '{"kind":"busy"}', -16, "Device or resource busy"),
        ("fail", '{"kind":"unsupported"}', -95, "Operation not supported"),
        ("fail", '{"kind":"timeout"}', -110, "Connection timed out"),
        ("fail", '{"kind":"no_space"}', -28, "No space left on device"),
        ("fail", '{"kind":"no_space","errno":12}', -12, "Cannot allocate memory"),
        ("fail", '{"kind":"not_found","errno":2}', -2, "No such file or directory"),
        ("fail", '{"kind":"invalid_params","errno":21}', -21, "Is a directory"),
        ("fail_602", '{"kind":"already_exists"}', -32602, "File exists"),
        ("broken", "{}", -32603, "Internal error"),
        ("not_a_number", "{}", -32603, "Internal error"),
        # Params that do not fit, in each method's own words.
        ("hold", "{}", -32603, "spdk_json_decode_object failed"),
        ("hold", "null", -32603, "spdk_json_decode_object failed"),
        ("hold", "[]", -32603, "spdk_json_decode_object failed"),
        ("hold", '{"key":"a","x":1}', -32603, "spdk_json_decode_object failed"),
        ("hold", '{"key":"a","key":"b"}', -32603, "spdk_json_decode_object failed"),
        ("hold", '{"key":null}', -32603, "spdk_json_decode_object failed"),
        ("hold", '{"key":5}', -32603, "spdk_json_decode_object failed"),
        ("typed", '{"name":1e400}', -32602, "Invalid parameters"),
        ("typed", '{"name":"n","size":"512"}', -32602, "Invalid parameters"),
        ("typed", '{"name":"n","size":true}', -32602, "Invalid parameters"),
        ("typed", '{"name":"n","size":1.5}', -32602, "Invalid parameters"),
        ("typed", '{"name":"n","size":-1}', -32602, "Invalid parameters"),
        ("typed", '{"name":"n","size":4294967296}', -32602, "Invalid parameters"),
        ("typed", '{"name":"n","size":1e400}', -32602, "Invalid parameters"),
        ("typed", '{"name":"n","ratio":1e400}', -32602, "Invalid parameters"),
        ("version", '{"x":1}', -32602, "version requires no parameters"),
        ("version", "[]", -32602, "version requires no parameters"),
        ("version", "[1]", -32602, "version requires no parameters"),
    ],
)
async def test_failure_has_spdks_code_and_text(
    dispatcher: Dispatcher, method: str, params: str, code: int, message: str
) -> None:
    answer = await ask(dispatcher, f'{{"method":"{method}","params":{params},"id":1}}')
    assert answer == error("1", f'{{"code":{code},"message":"{message}"}}') + "\n"


@pytest.mark.parametrize("size", ["512", "512.0", "5.12e2", "51200e-2"])
async def test_integer_is_taken_however_written(dispatcher: Dispatcher, size: str) -> None:
    answer = await ask(dispatcher, f'{{"method":"typed","params":{{"name":"n","size":{size}}},"id":1}}')
    assert answer is not None
    assert json.loads(answer)["result"]["size"] == 512


async def test_wrong_state_has_spdks_text(dispatcher: Dispatcher, world: World) -> None:
    late = await ask(dispatcher, '{"method":"startup_only","id":1}')
    assert late == error("1", json.dumps({"code": -1, "message": TOO_LATE[1]}, separators=(",", ":"))) + "\n"
    world.state = State.STARTUP
    early = await ask(dispatcher, '{"method":"broken","id":1}')
    assert early == error("1", json.dumps({"code": -1, "message": TOO_EARLY[1]}, separators=(",", ":"))) + "\n"
    assert await ask(dispatcher, '{"method":"version","id":1}') == result("1", '{"version":"v1"}') + "\n"


async def test_wrong_state_is_answered_before_params_are_looked_at(dispatcher: Dispatcher) -> None:
    answer = await ask(dispatcher, '{"method":"startup_only","params":{"x":1},"id":1}')
    assert answer is not None
    assert json.loads(answer)["error"]["code"] == -1


async def test_hidden_method_is_not_found(world: World) -> None:
    dispatcher = Dispatcher(TEST_METHODS, world, state=lambda: State.RUNTIME, allowed=frozenset({"echo"}))
    assert await ask(dispatcher, '{"method":"version","id":1}') == error("1", NOT_FOUND) + "\n"
    assert await ask(dispatcher, echo("1")) == result("1", "1") + "\n"
    assert dispatcher.method_names() == ["echo"]


def test_method_names_current_leaves_out_other_states(dispatcher: Dispatcher) -> None:
    assert "startup_only" in dispatcher.method_names()
    assert "startup_only" not in dispatcher.method_names(current=True)
    assert "version" in dispatcher.method_names(current=True)


def test_two_methods_of_one_name_are_refused(world: World) -> None:
    with pytest.raises(ValueError, match="echo"):
        Dispatcher([TEST_METHODS[0], TEST_METHODS[0]], world, state=lambda: State.RUNTIME)


async def test_batch_is_answered_in_order_of_completion(dispatcher: Dispatcher, world: World) -> None:
    async def batch() -> str | None:
        def hold(key: str) -> str:
            return f'{{"method":"hold","params":{{"key":"{key}"}},"id":"{key}"}}'

        return await ask(dispatcher, f"[{hold('a')},{hold('b')},{echo('3')}]")

    task = asyncio.create_task(batch())
    await world.until(lambda: world.started["echo"] == 1 and world.started["a"] == 1 and world.started["b"] == 1)
    world.gate("b").set()
    await world.until(lambda: world.ended["b"] == 1)
    world.gate("a").set()
    answers = [result("3", "1"), result('"b"', '"b"'), result('"a"', '"a"')]
    assert await task == f"[{','.join(answers)}]\n"


async def test_error_data_is_off_until_asked_for(dispatcher: Dispatcher) -> None:
    session = Session()
    request = '{"method":"fail","params":{"kind":"not_found"},"id":1}'
    plain = await ask(dispatcher, request, session)
    assert plain == error("1", '{"code":-19,"message":"No such device"}') + "\n"
    assert await ask(dispatcher, '{"method":"ubi_rpc_set_options","params":{"error_data":true}}', session) is None
    answer = await ask(dispatcher, request, session)
    assert (
        answer
        == error(
            "1",
            '{"code":-19,"message":"No such device","data":{"kind":"not_found",'
            '"message":"bdev aio0: it failed on purpose","context":{"bdev":"aio0"}}}',
        )
        + "\n"
    )
    assert await ask(dispatcher, request, Session()) == plain


async def test_last_error_can_be_asked_for_afterwards(dispatcher: Dispatcher) -> None:
    session = Session()
    assert await ask(dispatcher, '{"method":"ubi_rpc_get_last_error","id":1}', session) == result("1", "null") + "\n"
    await ask(dispatcher, '{"method":"hold","params":{"kee":"a"},"id":1}', session)
    answer = await ask(dispatcher, '{"method":"ubi_rpc_get_last_error","id":1}', session)
    assert answer is not None
    last = json.loads(answer)["result"]
    assert last["kind"] == "invalid_params"
    assert "'key' is required" in last["message"]
    assert "did you mean 'key'" in last["message"]


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ('{"nam":"n"}', ["typed", "'name' is required", "unknown parameter 'nam', did you mean 'name'?"]),
        ('{"name":"n","zzzzzz":1}', ["unknown parameter 'zzzzzz'", "known are name, size, ratio, secret"]),
        ('{"name":"n","size":1.5}', ["parameter 'size' should be a valid integer"]),
        ('{"name":"n","size":null}', ["size", "null"]),
        ('{"name":"n","name":"m"}', ["'name' is repeated"]),
        ("[]", ["params must be an object"]),
    ],
)
async def test_decode_failure_says_which_parameter(dispatcher: Dispatcher, params: str, words: list[str]) -> None:
    session = Session()
    await ask(dispatcher, f'{{"method":"typed","params":{params},"id":1}}', session)
    assert session.last_error is not None
    for word in words:
        assert word in str(session.last_error["message"])


async def test_failures_never_repeat_a_value(dispatcher: Dispatcher, caplog: pytest.LogCaptureFixture) -> None:
    session = Session(error_data=True)
    with caplog.at_level(logging.DEBUG):
        for params in (
            '{"name":"n","secret":["hunter2"]}',
            '{"name":"n","secret":{"hunter2":"hunter2"}}',
            '["hunter2"]',
        ):
            answer = await ask(dispatcher, f'{{"method":"typed","params":{params},"id":1}}', session)
            assert answer is not None
            assert "hunter2" not in answer
    assert "hunter2" not in caplog.text


async def test_exception_is_logged_and_not_told(dispatcher: Dispatcher, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("jsonrpcserver").setLevel(logging.NOTSET)
    answer = await ask(dispatcher, '{"method":"broken","id":1}', Session(error_data=True))
    assert answer is not None
    assert "secret" not in answer
    assert "Traceback" in caplog.text
    assert "a secret in a Python message" in caplog.text
    assert "broken" in caplog.text


async def test_failure_is_logged_on_one_line(dispatcher: Dispatcher, caplog: pytest.LogCaptureFixture) -> None:
    name = "\\n" + "x" * 100_000
    await ask(dispatcher, f'{{"method":"{name}","id":1,"{name}":1}}')
    await ask(dispatcher, f'{{"method":"{name}","id":1}}')
    await ask(dispatcher, f'{{"method":"version","params":{{"{name}":1}},"id":1}}')
    assert len(caplog.records) == 3
    for record in caplog.records:
        assert len(record.getMessage()) < 1000
        assert "\n" not in record.getMessage()


async def test_answer_over_the_limit_is_an_error(dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "MAX_ANSWER_BYTES", 100)
    assert await ask(dispatcher, echo("1", f'"{"x" * 98}"')) == result("1", f'"{"x" * 98}"') + "\n"
    answer = await ask(dispatcher, echo("1", f'"{"x" * 99}"'))
    assert answer == error("1", '{"code":-32603,"message":"Internal error"}') + "\n"


async def test_call_for_a_configuration_file_is_the_same_call(dispatcher: Dispatcher) -> None:
    assert await dispatcher.call("echo", {"value": [1]}) == [1]
    assert await dispatcher.call("version", None) == {"version": "v1"}
    for name, params, code in [
        ("fail", {"kind": "not_found"}, -19),
        ("hold", {}, -32603),
        ("startup_only", None, -1),
        ("nope", None, -32601),
        ("broken", None, -32603),
    ]:
        with pytest.raises(WireError) as caught:
            await dispatcher.call(name, params)
        assert caught.value.code == code
        assert caught.value.detail


async def test_unknown_method_suggests_a_close_one(dispatcher: Dispatcher) -> None:
    with pytest.raises(WireError, match="did you mean 'version'") as caught:
        await dispatcher.call("versoin", None)
    assert caught.value.kind is ErrorKind.NOT_FOUND
