# SPDX-License-Identifier: Apache-2.0
"""Small tables of everyday facts, each row in English and Chinese.

A relation is a table of rows `English key | English value | Chinese key | Chinese value` and, for
each language, ways to ask (`ask`), ways to ask that are kept for the evaluation (`held`), ways to
answer (`say`) and short follow-up questions (`more`). {k} is the key and {v} the value; {K} and
{V} start with a capital.
"""


def table(text):
    return [tuple(cell.strip() for cell in line.split("|")) for line in text.strip().splitlines()]


def both_ways(rows):
    return rows + [(b, a, d, c) for a, b, c, d in rows]


OPPOSITES = both_ways(table("""
hot|cold|热|冷
big|small|大|小
tall|short|高|矮
fast|slow|快|慢
happy|sad|高兴|难过
old|young|老|年轻
hard|soft|硬|软
light|heavy|轻|重
dark|bright|暗|亮
early|late|早|晚
open|closed|开|关
full|empty|满|空
clean|dirty|干净|脏
wet|dry|湿|干
strong|weak|强|弱
rich|poor|富|穷
thick|thin|厚|薄
near|far|近|远
up|down|上|下
left|right|左|右
in|out|里|外
front|back|前|后
first|last|第一|最后
day|night|白天|夜晚
black|white|黑|白
good|bad|好|坏
loud|quiet|吵|安静
easy|difficult|容易|困难
cheap|expensive|便宜|贵
safe|dangerous|安全|危险
begin|end|开始|结束
buy|sell|买|卖
give|take|给|拿
push|pull|推|拉
win|lose|赢|输
love|hate|爱|恨
remember|forget|记得|忘记
true|false|真|假
deep|shallow|深|浅
wide|narrow|宽|窄
beautiful|ugly|美|丑
many|few|多|少
brave|afraid|勇敢|害怕
asleep|awake|睡着|醒着
busy|free|忙|闲
north|south|北|南
east|west|东|西
arrive|leave|到达|离开
"""))

CAPITALS = table("""
France|Paris|法国|巴黎
Germany|Berlin|德国|柏林
Italy|Rome|意大利|罗马
Spain|Madrid|西班牙|马德里
Portugal|Lisbon|葡萄牙|里斯本
England|London|英国|伦敦
Ireland|Dublin|爱尔兰|都柏林
Norway|Oslo|挪威|奥斯陆
Sweden|Stockholm|瑞典|斯德哥尔摩
Denmark|Copenhagen|丹麦|哥本哈根
Finland|Helsinki|芬兰|赫尔辛基
Poland|Warsaw|波兰|华沙
Austria|Vienna|奥地利|维也纳
Greece|Athens|希腊|雅典
Turkey|Ankara|土耳其|安卡拉
Russia|Moscow|俄罗斯|莫斯科
Hungary|Budapest|匈牙利|布达佩斯
Belgium|Brussels|比利时|布鲁塞尔
China|Beijing|中国|北京
Japan|Tokyo|日本|东京
South Korea|Seoul|韩国|首尔
Thailand|Bangkok|泰国|曼谷
Vietnam|Hanoi|越南|河内
India|New Delhi|印度|新德里
Indonesia|Jakarta|印度尼西亚|雅加达
Mongolia|Ulaanbaatar|蒙古|乌兰巴托
Nepal|Kathmandu|尼泊尔|加德满都
Iran|Tehran|伊朗|德黑兰
Iraq|Baghdad|伊拉克|巴格达
Egypt|Cairo|埃及|开罗
Kenya|Nairobi|肯尼亚|内罗毕
Morocco|Rabat|摩洛哥|拉巴特
Ethiopia|Addis Ababa|埃塞俄比亚|亚的斯亚贝巴
Canada|Ottawa|加拿大|渥太华
Mexico|Mexico City|墨西哥|墨西哥城
Cuba|Havana|古巴|哈瓦那
Brazil|Brasilia|巴西|巴西利亚
Argentina|Buenos Aires|阿根廷|布宜诺斯艾利斯
Chile|Santiago|智利|圣地亚哥
Peru|Lima|秘鲁|利马
Colombia|Bogota|哥伦比亚|波哥大
Australia|Canberra|澳大利亚|堪培拉
New Zealand|Wellington|新西兰|惠灵顿
Iceland|Reykjavik|冰岛|雷克雅未克
""")

CONTINENTS = table("""
France|Europe|法国|欧洲
Germany|Europe|德国|欧洲
Italy|Europe|意大利|欧洲
Spain|Europe|西班牙|欧洲
Norway|Europe|挪威|欧洲
Sweden|Europe|瑞典|欧洲
Poland|Europe|波兰|欧洲
Greece|Europe|希腊|欧洲
China|Asia|中国|亚洲
Japan|Asia|日本|亚洲
Thailand|Asia|泰国|亚洲
Vietnam|Asia|越南|亚洲
India|Asia|印度|亚洲
Nepal|Asia|尼泊尔|亚洲
Egypt|Africa|埃及|非洲
Kenya|Africa|肯尼亚|非洲
Morocco|Africa|摩洛哥|非洲
Ethiopia|Africa|埃塞俄比亚|非洲
Canada|North America|加拿大|北美洲
Mexico|North America|墨西哥|北美洲
Cuba|North America|古巴|北美洲
Brazil|South America|巴西|南美洲
Argentina|South America|阿根廷|南美洲
Chile|South America|智利|南美洲
Peru|South America|秘鲁|南美洲
""")

COLOURS = table("""
the sky|blue|天空|蓝色
grass|green|草|绿色
snow|white|雪|白色
a lemon|yellow|柠檬|黄色
a banana|yellow|香蕉|黄色
a strawberry|red|草莓|红色
a tomato|red|西红柿|红色
blood|red|血|红色
coal|black|煤|黑色
milk|white|牛奶|白色
an orange|orange|橙子|橙色
a carrot|orange|胡萝卜|橙色
chocolate|brown|巧克力|棕色
a tree trunk|brown|树干|棕色
the sun|yellow|太阳|黄色
a leaf|green|树叶|绿色
a cucumber|green|黄瓜|绿色
a cherry|red|樱桃|红色
an elephant|grey|大象|灰色
a mouse|grey|老鼠|灰色
a crow|black|乌鸦|黑色
a swan|white|天鹅|白色
a frog|green|青蛙|绿色
the sea|blue|大海|蓝色
salt|white|盐|白色
rice|white|米饭|白色
a pumpkin|orange|南瓜|橙色
a grape|purple|葡萄|紫色
an eggplant|purple|茄子|紫色
a cloud|white|云|白色
the night sky|black|夜空|黑色
gold|yellow|金子|黄色
""")

SOUNDS = table("""
a dog|woof|狗|汪汪
a cat|meow|猫|喵喵
a cow|moo|牛|哞哞
a sheep|baa|羊|咩咩
a duck|quack|鸭子|嘎嘎
a pig|oink|猪|哼哼
a horse|neigh|马|嘶嘶
a frog|croak|青蛙|呱呱
a bee|buzz|蜜蜂|嗡嗡
a rooster|cock-a-doodle-doo|公鸡|喔喔
a mouse|squeak|老鼠|吱吱
a lion|roar|狮子|吼吼
a wolf|howl|狼|嗷嗷
an owl|hoot|猫头鹰|咕咕
a snake|hiss|蛇|咝咝
a bird|tweet|小鸟|叽叽
""")

LEGS = table("""
a dog|four|狗|四
a cat|four|猫|四
a horse|four|马|四
a cow|four|牛|四
a sheep|four|羊|四
a pig|four|猪|四
a rabbit|four|兔子|四
an elephant|four|大象|四
a lion|four|狮子|四
a tiger|four|老虎|四
a frog|four|青蛙|四
a bird|two|鸟|两
a duck|two|鸭子|两
a chicken|two|鸡|两
an owl|two|猫头鹰|两
a penguin|two|企鹅|两
a person|two|人|两
a bee|six|蜜蜂|六
an ant|six|蚂蚁|六
a butterfly|six|蝴蝶|六
a fly|six|苍蝇|六
a spider|eight|蜘蛛|八
a fish|no|鱼|零
a snake|no|蛇|零
a worm|no|蚯蚓|零
""")

BABIES = table("""
dog|puppy|狗|小狗
cat|kitten|猫|小猫
cow|calf|牛|牛犊
sheep|lamb|羊|羊羔
horse|foal|马|马驹
duck|duckling|鸭子|小鸭
hen|chick|鸡|小鸡
pig|piglet|猪|猪崽
lion|cub|狮子|幼狮
bear|cub|熊|幼熊
frog|tadpole|青蛙|蝌蚪
butterfly|caterpillar|蝴蝶|毛毛虫
goat|kid|山羊|小山羊
swan|cygnet|天鹅|小天鹅
kangaroo|joey|袋鼠|小袋鼠
deer|fawn|鹿|小鹿
""")

HOMES = table("""
a bird|a nest|鸟|鸟巢
a bee|a hive|蜜蜂|蜂巢
a fish|the water|鱼|水
a rabbit|a burrow|兔子|洞
a spider|a web|蜘蛛|网
a bear|a cave|熊|山洞
a horse|a stable|马|马厩
a dog|a kennel|狗|狗窝
a camel|the desert|骆驼|沙漠
a penguin|the cold south|企鹅|寒冷的南极
a whale|the sea|鲸鱼|大海
a monkey|the trees|猴子|树林
a lion|the grassland|狮子|草原
a panda|the bamboo forest|熊猫|竹林
a frog|the pond|青蛙|池塘
an ant|an anthill|蚂蚁|蚁穴
""")

FOODS = table("""
a rabbit|carrots|兔子|胡萝卜
a panda|bamboo|熊猫|竹子
a cow|grass|牛|草
a cat|fish|猫|鱼
a monkey|bananas|猴子|香蕉
a squirrel|nuts|松鼠|坚果
a bee|nectar|蜜蜂|花蜜
a lion|meat|狮子|肉
a mouse|cheese|老鼠|奶酪
a sheep|grass|羊|草
a frog|insects|青蛙|昆虫
a chicken|corn|鸡|玉米
a dog|bones|狗|骨头
a bear|honey|熊|蜂蜜
a horse|hay|马|干草
""")

CLASSES = table("""
a rose|flower|玫瑰|花
a tulip|flower|郁金香|花
a lily|flower|百合|花
an apple|fruit|苹果|水果
a pear|fruit|梨|水果
a banana|fruit|香蕉|水果
a peach|fruit|桃子|水果
a carrot|vegetable|胡萝卜|蔬菜
a potato|vegetable|土豆|蔬菜
a cabbage|vegetable|白菜|蔬菜
a dog|animal|狗|动物
a tiger|animal|老虎|动物
a sparrow|bird|麻雀|鸟
an eagle|bird|老鹰|鸟
a salmon|fish|三文鱼|鱼
a shark|fish|鲨鱼|鱼
an ant|insect|蚂蚁|昆虫
a butterfly|insect|蝴蝶|昆虫
a violin|musical instrument|小提琴|乐器
a piano|musical instrument|钢琴|乐器
a drum|musical instrument|鼓|乐器
a hammer|tool|锤子|工具
a saw|tool|锯子|工具
a chair|piece of furniture|椅子|家具
a table|piece of furniture|桌子|家具
a shirt|piece of clothing|衬衫|衣服
a coat|piece of clothing|外套|衣服
a bus|vehicle|公共汽车|交通工具
a train|vehicle|火车|交通工具
a bicycle|vehicle|自行车|交通工具
tea|drink|茶|饮料
coffee|drink|咖啡|饮料
red|colour|红色|颜色
blue|colour|蓝色|颜色
Monday|day|星期一|日子
football|sport|足球|运动
tennis|sport|网球|运动
a triangle|shape|三角形|形状
a circle|shape|圆形|形状
an oak|tree|橡树|树
a pine|tree|松树|树
""")

SIDES = table("""
a triangle|three|三角形|三
a square|four|正方形|四
a rectangle|four|长方形|四
a pentagon|five|五边形|五
a hexagon|six|六边形|六
an octagon|eight|八边形|八
a circle|no|圆形|零
""")

AMOUNTS = table("""
minutes in an hour|sixty|一个小时有多少分钟|六十分钟
seconds in a minute|sixty|一分钟有多少秒|六十秒
hours in a day|twenty-four|一天有多少个小时|二十四个小时
days in a week|seven|一个星期有几天|七天
months in a year|twelve|一年有几个月|十二个月
seasons in a year|four|一年有几个季节|四个季节
fingers on one hand|five|一只手有几根手指|五根手指
letters in the English alphabet|twenty-six|英文字母有多少个|二十六个
colours in a rainbow|seven|彩虹有几种颜色|七种颜色
planets around the sun|eight|太阳系有几颗行星|八颗行星
wheels on a bicycle|two|自行车有几个轮子|两个轮子
wheels on a car|four|汽车有几个轮子|四个轮子
days in a year|three hundred and sixty-five|一年有多少天|三百六十五天
years in a century|one hundred|一个世纪有多少年|一百年
eggs in a dozen|twelve|一打鸡蛋有几个|十二个
strings on a violin|four|小提琴有几根弦|四根弦
legs on a chair|four|椅子有几条腿|四条腿
eyes on a face|two|人有几只眼睛|两只眼睛
""")

WORDS = table("""
cat|猫
dog|狗
bird|鸟
fish|鱼
horse|马
cow|牛
rabbit|兔子
tiger|老虎
lion|狮子
monkey|猴子
elephant|大象
water|水
tea|茶
coffee|咖啡
milk|牛奶
rice|米饭
bread|面包
apple|苹果
banana|香蕉
orange|橙子
egg|鸡蛋
sun|太阳
moon|月亮
star|星星
rain|雨
snow|雪
wind|风
cloud|云
river|河
sea|大海
mountain|山
tree|树
flower|花
grass|草
house|房子
door|门
window|窗户
table|桌子
chair|椅子
book|书
pen|笔
school|学校
teacher|老师
student|学生
friend|朋友
mother|妈妈
father|爸爸
brother|兄弟
sister|姐妹
child|孩子
doctor|医生
city|城市
road|路
car|汽车
bus|公共汽车
train|火车
plane|飞机
bicycle|自行车
hand|手
eye|眼睛
ear|耳朵
heart|心
red|红色
blue|蓝色
green|绿色
yellow|黄色
white|白色
black|黑色
hello|你好
goodbye|再见
thank you|谢谢
sorry|对不起
good morning|早上好
good night|晚安
today|今天
tomorrow|明天
yesterday|昨天
music|音乐
time|时间
love|爱
happy|高兴
beautiful|美丽
""")
TO_CHINESE = [(en, zh, en, zh) for en, zh in WORDS]

PLURALS = table("""
cat|cats
dog|dogs
book|books
box|boxes
bus|buses
baby|babies
city|cities
child|children
man|men
woman|women
foot|feet
tooth|teeth
mouse|mice
goose|geese
leaf|leaves
knife|knives
wolf|wolves
sheep|sheep
fish|fish
person|people
glass|glasses
party|parties
tomato|tomatoes
star|stars
""")

PASTS = table("""
go|went
eat|ate
see|saw
run|ran
sing|sang
write|wrote
read|read
give|gave
take|took
come|came
make|made
buy|bought
think|thought
teach|taught
swim|swam
sleep|slept
drink|drank
speak|spoke
walk|walked
play|played
find|found
know|knew
fly|flew
begin|began
""")

JOBS = table("""
teaches children|a teacher|教孩子|老师
helps sick people|a doctor|给人看病|医生
puts out fires|a firefighter|灭火|消防员
bakes bread|a baker|烤面包|面包师
grows food|a farmer|种庄稼|农民
flies a plane|a pilot|开飞机|飞行员
drives a bus|a bus driver|开公共汽车|公交司机
catches fish|a fisherman|打鱼|渔夫
writes books|a writer|写书|作家
paints pictures|a painter|画画|画家
cooks in a restaurant|a cook|在餐馆做饭|厨师
takes care of teeth|a dentist|看牙|牙医
cuts hair|a hairdresser|剪头发|理发师
builds houses|a builder|盖房子|建筑工人
delivers letters|a postman|送信|邮递员
catches thieves|a police officer|抓小偷|警察
takes care of animals|a vet|给动物看病|兽医
sings songs|a singer|唱歌|歌手
""")

USES = table("""
cut paper|scissors|剪纸|剪刀
write|a pen|写字|笔
tell the time|a clock|看时间|钟
stay dry in the rain|an umbrella|在雨里不淋湿|雨伞
eat soup|a spoon|喝汤|勺子
sleep|a bed|睡觉|床
open a lock|a key|开锁|钥匙
brush your teeth|a toothbrush|刷牙|牙刷
sweep the floor|a broom|扫地|扫帚
take photos|a camera|拍照|相机
see small things|a magnifying glass|看很小的东西|放大镜
measure length|a ruler|量长度|尺子
hit a nail|a hammer|钉钉子|锤子
keep food cold|a fridge|冷藏食物|冰箱
make a phone call|a phone|打电话|电话
carry books|a bag|背书|书包
""")
